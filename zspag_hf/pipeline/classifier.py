"""model id -> classifier: pixels in [0, 1] in, logits out, with the image processor's normalisation inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnlearningError, first_line
from ..parallel.processes import my_batches, summed

BATCH = 64  # images of a forward pass
GRADIENT_BATCH = 16  # images of 224 pixels in a pass that keeps every layer's output, half of a training step's


def gradient_batch(pixels: Tensor) -> int:
    """Images that are differentiated at once: ``GRADIENT_BATCH`` of 224 pixels, up to eight times as many smaller ones.
    It depends on nothing else, so results do not either."""
    return max(GRADIENT_BATCH, min(8 * GRADIENT_BATCH, GRADIENT_BATCH * 224**2 // pixels[0, 0].numel()))


class PixelClassifier(nn.Module):
    """An image classifier f that takes pixels instead of normalised values: ``(N, channels, H, W)`` float in [0, 1] ->
    logits ``(N, C)``. Attacks need the [0, 1] box of real images (eq. 1), so rescaling and normalisation become the
    first, fixed layer. The wrapped model stays the same object: training it directly is the same thing.

    Args:
        model: any ``AutoModelForImageClassification``; ``model(pixel_values=...)`` returns ``.logits``.
        processor: its image processor; its rescaling and normalisation are read from its settings, and tried on one
            image. Where it swaps red and blue (MobileViT), pixels are in the model's order.

    Raises:
        UnlearningError: the processor does something else to pixels, so that attacks would see another model.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: PreTrainedModel, processor: Any):
        super().__init__()
        torch.backends.cudnn.allow_tf32 = False  # convolutions on a GPU have float32 mantissas only when told so
        self.model, self.processor = model, processor
        settings = processor.to_dict()
        scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
        shift = -1.0 if settings.get("rescale_offset") else 0.0  # EfficientNet's processors map to [-1, 1]
        normalised = settings.get("do_normalize", False)
        mean = torch.tensor(settings["image_mean"] if normalised else [0.0]).float().view(-1, 1, 1)
        std = torch.tensor(settings["image_std"] if normalised else [1.0]).float().view(-1, 1, 1)
        # With include_top, EfficientNet's processors divide by the standard deviation once more.
        again = torch.tensor(settings["image_std"] if settings.get("include_top") else [1.0]).float().view(-1, 1, 1)
        self.register_buffer("scale", scale / std / again, persistent=False)
        self.register_buffer("shift", (shift - mean) / std / again, persistent=False)
        self.check(processor)

    def check(self, processor: Any) -> None:
        """Compare with the processor itself on an image of noise, to one grey level.

        Raises:
            UnlearningError: they differ.
        """
        size = (40, 56) if mode(processor) == "L" else (40, 56, 3)
        noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        image, name = Image.fromarray(noise), type(processor).__name__
        mend = "Give a processing_class that resizes, crops, rescales and normalises, and does nothing else."
        try:
            expected = torch.as_tensor(np.asarray(processor([image], return_tensors="np")["pixel_values"]))
            pixels = to_pixels([image], processor)
        except (KeyError, TypeError, ValueError) as error:
            raise UnlearningError(
                f"{name} cannot be run without its normalisation: {first_line(error)} {mend}"
            ) from error
        if expected.dim() != 4 or expected.shape != pixels.shape:
            raise UnlearningError(f"{name} gives an input of the shape {tuple(expected.shape)}, no image. {mend}")
        levels = float(((self.normalize(pixels / 255) - expected).abs() / (self.scale.abs() / 255)).max())
        if levels > 1:
            raise UnlearningError(
                f"{name} gives other values than its settings say, by up to {levels:.0f} grey levels. {mend}"
            )

    @property
    def num_labels(self) -> int:
        """C, how many classes the model tells."""
        return self.model.config.num_labels

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] -> the ``pixel_values`` that the model was trained on, same shape."""
        return pixels * self.scale.to(pixels.device) + self.shift.to(pixels.device)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``(N, C)`` of pixels in [0, 1]."""
        with exact_batch_norms(self.model, len(pixels)):
            return self.model(pixel_values=self.normalize(pixels)).logits

    @torch.no_grad()
    def predict(self, pixels: Tensor, batch_size: int = BATCH) -> Tensor:
        """Logits ``(N, C)`` on the CPU in float32, in eval mode; pixels are uint8 in 0..255 or float in [0, 1]."""
        with evaluating(self.model):
            logits = [self(to_unit(batch, self.device)).float().cpu() for batch in pixels.split(batch_size)]
        return torch.cat(logits)

    @torch.no_grad()
    def predict_shared(self, pixels: Tensor, batch_size: int = BATCH) -> Tensor:
        """:meth:`predict`, its batches shared among the processes: all of them have to call it."""
        logits = torch.zeros(len(pixels), self.num_labels)
        for rows in my_batches(len(pixels), batch_size):
            logits[rows] = self.predict(pixels[rows], batch_size)
        return summed(logits)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; after it every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block no weight wants a gradient: passes that differentiate by pixels keep half as much in memory."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def exact_batch_norms(model: nn.Module, images: int) -> Iterator[None]:
    """Forward passes inside the block have the right gradient for a single image too.

    For one image torch (2.13, CPU) takes the memory of the gradient that reaches a batch norm, or of the norm's input,
    for laid out channels last where it is not, and silently returns another gradient. CvT and LeViT, which turn tokens
    into maps, run into it. Both are laid out contiguously here.
    """
    if images > 1 or not torch.is_grad_enabled():
        yield
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda _m, args: args[0].contiguous()) for norm in norms]
    hooks += [norm.register_forward_hook(contiguous_gradient) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def contiguous_gradient(_module: nn.Module, _args: tuple, output: Tensor) -> None:
    """A forward hook that lays out the gradient of the output contiguously."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous())


def to_unit(pixels: Tensor, device: torch.device | str) -> Tensor:
    """uint8 pixels in 0..255, or float pixels in [0, 1], -> float pixels in [0, 1] on ``device``."""
    pixels = pixels.to(device)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def mode(processor: Any) -> str:
    """PIL mode of the model's input, read off the length of the processor's mean: "L" for grey-scale, else "RGB"."""
    mean = processor.to_dict().get("image_mean")
    return "L" if isinstance(mean, (list, tuple)) and len(mean) == 1 else "RGB"


def to_pixels(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """PIL images (RGB, or L for a grey-scale model) -> uint8 pixels ``(N, channels, H, W)``: resized and cropped by the
    processor, not normalised."""
    raw = {"do_rescale": False, "do_normalize": False}
    raw |= {"include_top": False} if processor.to_dict().get("include_top") else {}
    batch = processor(list(images), return_tensors="pt", **raw)["pixel_values"]
    return torch.as_tensor(np.asarray(batch)).round().clamp(0, 255).to(torch.uint8)
