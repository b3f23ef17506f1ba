"""model id -> classifier: pixels in [0, 1] in, logits out, with the image processor's normalisation inside."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from .errors import UnlearningError


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


def load_classifier(model: str | os.PathLike, *, processor=None, **hub_options):
    """Load a classifier and its image processor by Hub id or local folder.

    Args:
        model: Hub id (``"user/name"``) or a folder written by ``save_pretrained``.
        processor: an image processor to use in place of the repository's own.
        hub_options: ``revision``, ``token``, ``cache_dir``, passed to both ``from_pretrained``.

    Returns:
        ``(model, processor)``; weights in float32.

    Raises:
        UnlearningError: no such model, no safetensors weights, weights missing (a backbone without a head), or no image
            processor.
    """
    try:
        loaded, found = AutoModelForImageClassification.from_pretrained(
            model, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **hub_options
        )
    except (OSError, ValueError, ImportError) as error:
        raise UnlearningError(
            f"cannot load an image classifier from {str(model)!r}: {first_line(error)} Give the id of a Hub model, or a"
            " folder written by save_pretrained that holds config.json and model.safetensors."
        ) from error
    if found["missing_keys"]:
        raise UnlearningError(
            f"{str(model)!r} lacks weights of an image classifier, which would be drawn at random:"
            f" {sorted(found['missing_keys'])[:3]}. Give a model that was fine-tuned for classification."
        )
    if processor is None:
        processor = load_processor(model, **hub_options)
    return loaded, processor


def load_processor(model: str | os.PathLike, **hub_options):
    """The image processor saved beside a model.

    Raises:
        UnlearningError: the repository or folder holds no image processor.
    """
    try:
        return AutoImageProcessor.from_pretrained(model, **hub_options)
    except (OSError, ValueError) as error:
        raise UnlearningError(
            f"{str(model)!r} holds no image processor: {first_line(error)} Pass processing_class=, for example"
            " AutoImageProcessor.from_pretrained(the base model)."
        ) from error


def resolve_model(model, processing_class):
    """A loaded model with its image processor, from an id, a folder or a model.

    Raises:
        UnlearningError: neither loads.
    """
    if isinstance(model, (str, os.PathLike)):
        return load_classifier(model, processor=processing_class)
    if processing_class is None:
        if not model.config._name_or_path:
            raise UnlearningError("a model given as an object needs its image processor: pass processing_class.")
        processing_class = load_processor(model.config._name_or_path)
    return model, processing_class


def first_line(error: Exception) -> str:
    """The first sentence of a library's error, for quoting in ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
