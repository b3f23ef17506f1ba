"""model id -> classifier: pixels in [0, 1] in, logits out, with the image processor's normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel


class PixelClassifier(nn.Module):
    """An image classifier that takes pixels instead of normalised values.

    Attacks need the [0, 1] box of real images (eq. 1), so rescaling and normalisation become the first, fixed layer.
    The wrapped model stays the same object: training it through the wrapper or directly is the same thing.

    Args:
        model: any ``AutoModelForImageClassification``; ``model(pixel_values=...)`` returns ``.logits``.
        processor: its image processor; only ``rescale_factor``, ``image_mean`` and ``image_std`` are read.

    Shape:
        pixels ``(N, channels, H, W)`` float in [0, 1] -> logits ``(N, C)``.
    """

    def __init__(self, model: PreTrainedModel, processor):
        super().__init__()
        self.model = model
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

    @property
    def num_labels(self) -> int:
        return self.model.config.num_labels

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] -> the ``pixel_values`` that the model was trained on, same shape."""
        return pixels * self.scale.to(pixels.device) + self.shift.to(pixels.device)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=self.normalize(pixels)).logits

    @torch.no_grad()
    def predict(self, pixels: Tensor, batch_size: int = 64) -> Tensor:
        """Logits ``(N, C)`` on the CPU in float32, in eval mode; pixels are uint8 in 0..255 or float in [0, 1]."""
        was_training = self.model.training
        self.model.eval()
        logits = [self(to_unit(batch, self.device)).float().cpu() for batch in pixels.split(batch_size)]
        self.model.train(was_training)
        return torch.cat(logits)


def to_unit(pixels: Tensor, device: torch.device | str) -> Tensor:
    """uint8 pixels in 0..255, or float pixels in [0, 1], -> float pixels in [0, 1] on ``device``."""
    pixels = pixels.to(device)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def to_pixels(images: Sequence[Image.Image], processor) -> Tensor:
    """PIL images (RGB, or L for a grey-scale model) -> uint8 pixels ``(N, channels, H, W)``: resized and cropped by the
    processor, not normalised."""
    raw = {"do_rescale": False, "do_normalize": False}
    if processor.to_dict().get("include_top"):
        raw["include_top"] = False
    batch = processor(list(images), return_tensors="pt", **raw)["pixel_values"]
    return torch.as_tensor(np.asarray(batch)).round().clamp(0, 255).to(torch.uint8)
