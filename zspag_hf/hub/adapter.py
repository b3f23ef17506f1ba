"""Any ``nn.Module`` that classifies images, dressed as a model of transformers': the one way to unlearn the paper's
AlexNet and VGG, a torchvision or a timm network.

    adapted = ModuleClassifier(ModuleConfig(id2label=dict(enumerate(names)), image_size=32), network)
    trainer = UnlearningTrainer(adapted, config, forget_dataset, processing_class=adapted.image_processor())
    trainer.train(), trainer.save_model()
    again = ModuleClassifier.from_pretrained(folder, module=network_of_the_same_shape)
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, ViTImageProcessorPil
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import UnlearningError


class ModuleConfig(PreTrainedConfig):
    """What a plain module does not say of itself.

    Args:
        id2label: class id -> name, one for each output. image_size: side of its square images, in pixels.
        image_mean, image_std: normalisation of its input in [0, 1], one number a channel; a single one for grey-scale.
    """

    model_type = "zspag_module"

    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's, as torchvision's networks expect
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    tie_word_embeddings: bool = True  # what transformers calls it: weights that the module ties stay tied


class ModuleClassifier(PreTrainedModel):
    """A plain module as an image classifier.

    A folder written by ``save_model`` or ``save_pretrained`` holds its weights in safetensors and this config, not its
    code: ``from_pretrained`` needs a fresh module of the same shape, whose weights it replaces.

    Args:
        module: pixel_values ``(N, channels, H, W)``, normalised -> logits ``(N, C)``. Its weights stay as they are. In
            inputs of its layers images come first, as in any convolutional network; a transformer needs
            ``batch_first=True``, or its layers are left alone.

    Raises:
        UnlearningError: no module, or, when it is called, outputs that are not one logit a label.
    """

    config_class = ModuleConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ModuleConfig, module: nn.Module | None = None):
        super().__init__(config)
        self.module = _checked(module)
        first = {id(parameter): name for name, parameter in self.named_parameters()}
        every = self.named_parameters(remove_duplicate=False)
        # parameter under a second name -> its first name, for save_pretrained
        self._tied_weights_keys = {name: first[id(p)] for name, p in every if first[id(p)] != name}
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, module: nn.Module | None = None, **options):
        """As ``PreTrainedModel.from_pretrained``, into ``module``, a network of the same shape.

        Raises:
            UnlearningError: no module, or one whose weights are not those of the folder.
        """
        network = _checked(module)
        saved = network.state_dict()
        constant = {name: value.clone() for name, value in network.named_buffers() if name not in saved}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # to name them below
        model, missed = super().from_pretrained(pretrained_model_name_or_path, *args, module=network, **options)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if missed[kind]:
                names = sorted(key if isinstance(key, str) else key[0] for key in missed[kind])
                raise UnlearningError(
                    f"the module is not the one that was saved: {kind.replace('_', ' ')} {names[:3]}. Build it as it"
                    " was then."
                )
        for name, value in constant.items():  # left undefined by transformers, as no file holds them
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, value)
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """The module comes with its weights."""

    def forward(self, pixel_values: Tensor, **_) -> ImageClassifierOutput:
        """pixel_values ``(N, channels, H, W)``, normalised -> an output with logits ``(N, C)``."""
        logits = self.module(pixel_values)
        expected = (len(pixel_values), self.config.num_labels)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnlearningError(
                f"the module returns {given} and not logits of the shape {expected}: give id2label a name for each"
                " output, or wrap a module that returns the logits alone."
            )
        return ImageClassifierOutput(logits=logits)

    def image_processor(self) -> ViTImageProcessorPil:
        """Resizes any image to the square that the module reads, and normalises it; for ``processing_class``."""
        side, mean, std = self.config.image_size, self.config.image_mean, self.config.image_std
        return ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=list(mean), image_std=list(std))


def _checked(module: nn.Module | None) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise UnlearningError(
            f"the module is of the type {type(module).__name__}, no torch.nn.Module: build the network in Python and"
            " pass it; a folder holds its weights alone."
        )
    return module
