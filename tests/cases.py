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
from tiny_configs import (
    CLIP_TEXT,
    CONVNEXT,
    CVT,
    DINO,
    EFFICIENTNET,
    FOCALNET,
    HGNET,
    HIERA,
    LEVIT,
    MOBILE,
    MOBILEVIT,
    MOBILEVITV2,
    PERCEIVER,
    POOLFORMER,
    PVT,
    PYRAMID,
    SQUEEZED,
    STAGES,
    SWIFTFORMER,
    TEXT,
    TEXTNET,
    TRANSFORMER,
    WINDOWS,
    from_config,
    image_gpt,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zspag_hf.pipeline.classifier import PixelClassifier

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@dataclass(frozen=True)
class ModelCase:
    """A classifier of ``NUM_LABELS`` classes, built from a configuration; float64 in eval mode unless asked otherwise.

    Attributes:
        silent: modules with a weight that never run, whose rows the library can't describe, or that read no image:
            never constrained.
        why: what these modules are.
        on_hub: whether ``AutoModelForImageClassification`` builds it; else its class is the suite's own.
        gain: of the random weights, so that images differ in their logits by about one.
    """

    name: str
    make: Callable[[], nn.Module]
    image_size: int
    channels: int = 3
    silent: tuple[str, ...] = ()
    why: str = ""
    gain: float = 1.5
    on_hub: bool = True

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return randomised(self.make(), gain=self.gain).to(dtype).eval()

    def classifier(self, dtype: torch.dtype = torch.float64) -> PixelClassifier:
        return PixelClassifier(self.build(dtype), processor(self.channels)).to(dtype)

    def pixels(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        sides = (1, self.image_size)  # a colour of its own for each image, and noise
        parts = [torch.rand((n, self.channels, s, s), generator=generator, dtype=torch.float64) for s in sides]
        return ((parts[0] + parts[1]) / 2).to(dtype)


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
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.2 * noise(module.running_mean))
                module.running_var.copy_(0.5 + noise(module.running_var).abs())
    return model


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

CONSTANT_QUERIES = tuple(
    f"perceiver.{name}.attention.self.query"
    for name in ("decoder.decoder.decoding_cross_attention", "encoder.cross_attention")
)
POSITIONS, STEM = (f"perceiver.input_preprocessor.{name}" for name in ("positions_projection", "convnet.conv"))
TEACHER = "ForImageClassificationWithTeacher"

MODELS = [
    ModelCase("vit", from_config("ViT", **TRANSFORMER), 8),
    ModelCase("vit_grey", from_config("ViT", **TRANSFORMER, num_channels=1), 8, channels=1),
    ModelCase("vit_msn", from_config("ViTMSN", **TRANSFORMER), 8),
    ModelCase("deit", from_config("DeiT", **TRANSFORMER), 8),
    ModelCase("deit_teacher", from_config("DeiT", TEACHER, **TRANSFORMER), 8),
    ModelCase("beit", from_config("Beit", **TRANSFORMER, use_relative_position_bias=True), 8),
    ModelCase("data2vec-vision", from_config("Data2VecVision", **TRANSFORMER, use_relative_position_bias=True), 8),
    ModelCase("ijepa", from_config("IJepa", **TRANSFORMER), 8),
    ModelCase("dinov2", from_config("Dinov2", **DINO, use_swiglu_ffn=True), 8),
    ModelCase("dinov2_with_registers", from_config("Dinov2WithRegisters", **DINO), 8),
    ModelCase("clip", from_config("CLIP", vision_config=TRANSFORMER, text_config=CLIP_TEXT), 8),
    ModelCase("metaclip_2", from_config("MetaClip2", vision_config=TRANSFORMER, text_config=CLIP_TEXT), 8),
    ModelCase(
        "siglip",
        from_config("Siglip", vision_config=TRANSFORMER, text_config=TEXT),
        8,
        silent=("vision_model.head.attention.out_proj",),
        why="attention uses its weight without calling it",
    ),
    ModelCase("imagegpt", image_gpt, 4, on_hub=False),
    ModelCase("swin", from_config("Swin", **WINDOWS), 16),
    ModelCase("donut-swin", from_config("DonutSwin", **WINDOWS), 16),
    ModelCase("swinv2", from_config("Swinv2", **WINDOWS), 16, silent=POSITION_BIAS, why="read positions, not images"),
    ModelCase("hiera", from_config("Hiera", **HIERA), 16),
    ModelCase("focalnet", from_config("FocalNet", **FOCALNET), 16),
    ModelCase("cvt", from_config("Cvt", **CVT), 16),
    ModelCase("pvt", from_config("Pvt", **PVT), 16),
    ModelCase("pvt_v2", from_config("PvtV2", **PYRAMID, image_size=16), 16),
    ModelCase("segformer", from_config("Segformer", **PYRAMID), 16),
    ModelCase("levit", from_config("Levit", **LEVIT), 32, gain=1.25),
    ModelCase("levit_teacher", from_config("Levit", TEACHER, **LEVIT), 32, gain=1.25),
    ModelCase("swiftformer", from_config("SwiftFormer", **SWIFTFORMER), 32, gain=0.95),
    ModelCase("mobilevit", from_config("MobileViT", **MOBILEVIT), 16, gain=1.35),
    ModelCase("mobilevitv2", from_config("MobileViTV2", **MOBILEVITV2), 16, gain=1.6),
    ModelCase("poolformer", from_config("PoolFormer", **POOLFORMER), 16),
    ModelCase(
        "perceiver",
        from_config("Perceiver", "ForImageClassificationLearned", **PERCEIVER),
        8,
        silent=(*CONSTANT_QUERIES, POSITIONS),
        why="read latents and positions, not images",
    ),
    ModelCase(
        "perceiver_fourier",
        from_config("Perceiver", "ForImageClassificationFourier", **PERCEIVER),
        8,
        silent=CONSTANT_QUERIES,
        why="read latents and positions, not images",
        gain=2.0,
    ),
    ModelCase(
        "perceiver_conv",
        from_config("Perceiver", "ForImageClassificationConvProcessing", **PERCEIVER),
        16,
        silent=(*CONSTANT_QUERIES, STEM),
        why="read latents and positions; the stem pads in a forward of its own",
    ),
    ModelCase("convnext", from_config("ConvNext", **CONVNEXT), 16),
    ModelCase("convnextv2", from_config("ConvNextV2", **CONVNEXT), 16),
    ModelCase("resnet", from_config("ResNet", **STAGES, layer_type="basic"), 16),
    ModelCase("regnet", from_config("RegNet", **STAGES, groups_width=4, layer_type="x"), 16),
    ModelCase("regnet_y", from_config("RegNet", **SQUEEZED, groups_width=8, layer_type="y"), 16),
    ModelCase("efficientnet", from_config("EfficientNet", **EFFICIENTNET), 16, gain=1.65),
    ModelCase("hgnet_v2", from_config("HGNetV2", **HGNET), 16),
    ModelCase("textnet", from_config("TextNet", **TEXTNET), 16, gain=1.1),
    ModelCase("mobilenet_v1", from_config("MobileNetV1", **MOBILE), 16, gain=2.55),
    ModelCase("mobilenet_v2", from_config("MobileNetV2", **MOBILE), 16, gain=1.4),
    ModelCase(
        "bit", from_config("Bit", **STAGES, num_groups=4), 16, silent=STANDARDISED, why="standardise their weights"
    ),
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
