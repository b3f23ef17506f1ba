"""Models that can be unlearned or compared: float32, with finite logits, and the same classes in the same order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.labels import model_labels
from ..data.names import comparable
from ..errors import UnlearningError, first_line
from ..pipeline.classifier import PixelClassifier


def check_trainable(model: nn.Module) -> None:
    """Refuse weights that are not float32: a projection rounded to half precision leaks 6e-3 of the update.

    Raises:
        UnlearningError: a floating-point parameter is not float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnlearningError(
                f"parameter {name!r} is stored as {parameter.dtype}: load the model with dtype=torch.float32 (bf16=True"
                " in the config still computes in half precision)."
            )


def check_outputs(classifier: PixelClassifier, pixels: Tensor, model: str, images: str) -> Tensor:
    """Logits ``(N, C)`` of a first look at some images; ``model`` and ``images`` are what they are called in a message.

    Raises:
        UnlearningError: the model cannot take the images as they are, or its outputs are not finite logits of its
            labels.
    """
    count = classifier.num_labels
    try:
        logits = classifier.predict(pixels)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UnlearningError(
            f"the {model} cannot read {images} of {tuple(pixels.shape[1:])} values: {first_line(error)} Give an image"
            " classifier, and as processing_class the image processor that belongs to it."
        ) from error
    if logits.shape[1:] != (count,) or not torch.isfinite(logits).all():
        broken = [name for name, p in classifier.model.named_parameters() if not torch.isfinite(p).all()]
        cause = "some are nan or inf" if logits.shape[1:] == (count,) else f"they have the shape {tuple(logits.shape)}"
        cause = f"its parameter {broken[0]!r} is not finite" if broken else cause
        raise UnlearningError(
            f"the {model}'s outputs on {images} are not {count} finite numbers ({cause}): give finite weights, no mask"
            " on the logits (the masked model has a row of its own), and the processing_class that belongs to it."
        )
    return logits


def check_same_labels(config: Any, names: Sequence[str]) -> None:
    """Refuse a model for comparison whose outputs mean something else.

    Raises:
        UnlearningError: other classes, or another order.
    """
    held, unnamed = model_labels(config), [f"LABEL_{i}" for i in range(len(names))]  # saved by a tool that drops names
    if held != unnamed and list(map(comparable, held)) != list(map(comparable, names)):
        raise UnlearningError(
            f"the labels of a model to compare with differ from the model's: {held[:5]} ... against"
            f" {names[:5]} ...: give one with the same classes in the same order, or set its config.id2label."
        )
