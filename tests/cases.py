"""The one table of tiny models, and the one table of single layers, that the suite runs over.

A new layer type is one row in ``LAYERS``; a new architecture is one row in ``MODELS``. Weights are drawn from a fixed
seed with unit gain, biases, norms and running statistics away from their trivial values: nothing holds by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zspag_hf.classifier import PixelClassifier

NUM_LABELS = 5
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@dataclass(frozen=True)
class ModelCase:
    """A classifier of ``NUM_LABELS`` classes, built from a configuration; float64 in eval mode unless asked otherwise.

    Attributes:
        silent: modules with a weight that never run, or whose rows the library can't describe: never constrained.
    """

    name: str
    make: Callable[[], nn.Module]
    image_size: int
    channels: int = 3
    silent: tuple[str, ...] = ()

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return randomised(self.make()).to(dtype).eval()

    def classifier(self, dtype: torch.dtype = torch.float64) -> PixelClassifier:
        return PixelClassifier(self.build(dtype), processor(self.channels)).to(dtype)

    def pixels(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        shape = (n, self.channels, self.image_size, self.image_size)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def processor(channels: int = 3, **changes):
    settings = {"do_resize": False, "image_mean": MEAN[:channels], "image_std": STD[:channels]} | changes
    return hf.ViTImageProcessor(**settings)


def randomised(model: nn.Module, seed: int = 0, gain: float = 1.5) -> nn.Module:
    """Matrices with variance gain^2 / fan-in; every vector and running statistic moved off its initial value."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    transposed = isinstance(module, Conv1D)
                    fan_in = parameter.shape[0] if transposed else parameter[0].numel()
                    parameter.copy_(noise(parameter) * gain / fan_in**0.5)
                else:
                    parameter.copy_((name == "weight") + 0.2 * noise(parameter))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.2 * noise(module.running_mean))
                module.running_var.copy_(0.5 + noise(module.running_var).abs())
    return model


class PixelImageGPT(hf.ImageGPTForImageClassification):
    """ImageGPT reads colour clusters; here a fixed map of each pixel's colour stands for their embedding."""

    def __init__(self, config):
        super().__init__(config)
        colours = torch.randn(3, config.n_embd, generator=torch.Generator().manual_seed(0))
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, pixel_values: Tensor):
        tokens = pixel_values.flatten(2).transpose(1, 2)
        return super().forward(inputs_embeds=tokens @ self.colours, use_cache=False)


class FlatClassifier(nn.Module):
    """Layers on flattened pixels, dressed as a model of the Hub's: ``model(pixel_values=x).logits``."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *layers)
        self.config = SimpleNamespace(num_labels=layers[-1].out_features)

    def forward(self, pixel_values: Tensor):
        return SimpleNamespace(logits=self.layers(pixel_values))


def raw_processor():
    """Pixels stay as they are, in [0, 1]."""
    return processor(do_normalize=False)


def linear_classifier(
    num_labels: int = 4, channels: int = 1, size: int = 3, gain: float = 1.0, dtype: torch.dtype = torch.float64
) -> PixelClassifier:
    """Balanced: near a grey image no class is far away."""
    model = randomised(FlatClassifier(nn.Linear(channels * size * size, num_labels)), gain=gain).to(dtype)
    with torch.no_grad():
        linear = model.layers[1]
        linear.bias -= linear.weight.sum(1) / 2
    return PixelClassifier(model.eval(), raw_processor()).to(dtype)


def two_layer_classifier(width: int = 3, num_labels: int = 3, dtype: torch.dtype = torch.float64) -> PixelClassifier:
    """On 2x2 grey images."""
    model = FlatClassifier(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, num_labels))
    return PixelClassifier(randomised(model, gain=2.0).to(dtype).eval(), raw_processor()).to(dtype)


TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
WINDOWS = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "hidden_act": "silu"}
MOBILE = {"image_size": 16, "depth_multiplier": 0.02, "hidden_act": "silu"}


def from_config(family: str, **settings) -> Callable[[], nn.Module]:
    def make():
        config = getattr(hf, f"{family}Config")(num_labels=NUM_LABELS, **settings)
        return getattr(hf, f"{family}ForImageClassification")(config)

    return make


def image_gpt():
    return PixelImageGPT(
        hf.ImageGPTConfig(num_labels=NUM_LABELS, vocab_size=9, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    )


def siglip():
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    return hf.SiglipForImageClassification(
        hf.SiglipConfig(vision_config=TRANSFORMER, text_config=text, num_labels=NUM_LABELS)
    )


POSITION_BIAS = tuple(
    f"swinv2.encoder.layers.{stage}.blocks.{block}.attention.self.continuous_position_bias_mlp.{i}"
    for stage, block in ((0, 0), (0, 1), (1, 0))
    for i in (0, 2)
)
STANDARDISED = tuple(
    f"bit.{name}"
    for name in (
        "embedder.convolution",
        *(f"encoder.stages.{s}.layers.0.{conv}" for s in (0, 1) for conv in ("downsample.conv", "conv1", "conv2")),
        *(f"encoder.stages.{s}.layers.0.conv3" for s in (0, 1)),
    )
)

MODELS = [
    ModelCase("vit", from_config("ViT", **TRANSFORMER), 8),
    ModelCase("vit_grey", from_config("ViT", **TRANSFORMER, num_channels=1), 8, channels=1),
    ModelCase("deit", from_config("DeiT", **TRANSFORMER), 8),
    ModelCase("beit", from_config("Beit", **TRANSFORMER, use_relative_position_bias=True), 8),
    ModelCase("swin", from_config("Swin", **WINDOWS), 16),
    ModelCase("swinv2", from_config("Swinv2", **WINDOWS), 16, silent=POSITION_BIAS),
    ModelCase("siglip", siglip, 8, silent=("vision_model.head.attention.out_proj",)),
    ModelCase("imagegpt", image_gpt, 4),
    ModelCase("convnext", from_config("ConvNext", num_stages=2, hidden_sizes=[8, 12], depths=[1, 1]), 16),
    ModelCase("resnet", from_config("ResNet", **STAGES, layer_type="basic"), 16),
    ModelCase("regnet", from_config("RegNet", **STAGES, groups_width=4, layer_type="x"), 16),
    ModelCase("mobilenet_v1", from_config("MobileNetV1", **MOBILE), 16),
    ModelCase("mobilenet_v2", from_config("MobileNetV2", **MOBILE), 16),
    ModelCase("bit", from_config("Bit", **STAGES, num_groups=4), 16, silent=STANDARDISED),
]


@dataclass(frozen=True)
class LayerCase:
    """One layer and the shape of an input to it, images first."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def build(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
        """The layer, and its input ``shape``, both random."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return randomised(self.make()).to(dtype), x.to(dtype)


LAYERS = [
    LayerCase("linear_vectors", lambda: nn.Linear(6, 4), (3, 6)),
    LayerCase("linear_tokens", lambda: nn.Linear(6, 4), (3, 5, 6)),
    LayerCase("linear_map", lambda: nn.Linear(6, 4), (3, 2, 5, 6)),
    LayerCase("linear_no_bias", lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    LayerCase("conv1d", lambda: Conv1D(4, 6), (3, 5, 6)),
    LayerCase("conv", lambda: nn.Conv2d(3, 4, 3), (3, 3, 6, 5)),
    LayerCase("conv_strided", lambda: nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 2), (1, 2)), (3, 3, 7, 6)),
    LayerCase("conv_patch", lambda: nn.Conv2d(3, 4, 4, 4), (3, 3, 8, 8)),
    LayerCase("conv_1x1", lambda: nn.Conv2d(3, 4, 1, bias=False), (3, 3, 4, 4)),
    LayerCase("conv_grouped", lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (3, 4, 6, 6)),
    LayerCase("conv_depthwise", lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 5, 5)),
    LayerCase("conv_multiplier", lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 4, 5, 5)),
    LayerCase("conv_same", lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), (3, 3, 6, 5)),
    LayerCase("conv_valid", lambda: nn.Conv2d(3, 4, 3, padding="valid"), (3, 3, 6, 5)),
    LayerCase("conv_circular", lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (3, 3, 6, 5)),
    LayerCase("conv_reflect", lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=2, padding_mode="reflect"), (3, 4, 6, 5)),
    LayerCase("conv_same_circular", lambda: nn.Conv2d(3, 4, 4, padding="same", padding_mode="circular"), (3, 3, 6, 5)),
]


class Recorder:
    """What every layer read and gave during the forward passes inside the block, as copies."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
        self.outputs: dict[str, list[Tensor]] = {name: [] for name in modules}

    def __enter__(self):
        self.handles = []
        for name, module in self.modules.items():
            self.handles += [
                module.register_forward_pre_hook(lambda _m, x, name=name: self._keep(self.inputs[name], x[0])),
                module.register_forward_hook(lambda _m, _x, y, name=name: self._keep(self.outputs[name], y)),
            ]
        return self

    @staticmethod
    def _keep(kept: list[Tensor], value: Tensor) -> None:
        kept.append(value.detach().clone())

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def output_rows(module: nn.Module, output: Tensor) -> Tensor:
    """A layer's output without its bias, ``(n, out)``, in the order of :meth:`Layer.rows`."""
    rows = output.movedim(1, -1) if isinstance(module, nn.Conv2d) else output
    rows = rows.reshape(-1, rows.shape[-1])
    return rows if module.bias is None else rows - module.bias
