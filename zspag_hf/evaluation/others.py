"""The models that are compared, of any origin: loaded, and refused where they do not compare."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import UnlearningError
from ..hub.models import resolve_model, source_of
from ..hub.repository import HubOptions
from ..pipeline.classifier import PixelClassifier
from .accepted import check_same_labels, check_trainable

Model: TypeAlias = str | os.PathLike | PreTrainedModel
GEOMETRY = (  # what a processor does to an image before it is normalised
    *("do_resize", "size", "resample", "size_divisor", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order"),
    *("do_center_crop", "crop_size", "crop_pct", "do_pad", "pad_size"),
)


def load_other(
    model: Model, names: Sequence[str], processor: BaseImageProcessor, device: torch.device, hub: HubOptions
) -> PixelClassifier:
    """A model to compare, with its own normalisation, on pixels that ``processor``, the original's, made.

    Raises:
        UnlearningError: other classes, half-precision weights, or another size of image.
    """
    loaded, own = resolve_model(model, processor if isinstance(model, torch.nn.Module) else None, hub)
    check_same_labels(loaded.config, names)
    check_trainable(loaded)
    mine, theirs = ({key: p.to_dict().get(key) for key in GEOMETRY} for p in (processor, own))
    if unequal := [f"{key} {theirs[key]}, not {mine[key]}" for key in GEOMETRY if mine[key] != theirs[key]]:
        raise UnlearningError(
            f"{source_of(loaded)[0]!r} reads images of another size or crop than the original ({'; '.join(unequal)}):"
            " models are compared on the same pixels. Give one with the original's image processor."
        )
    return PixelClassifier(loaded.to(device).eval(), own)


def load_others(
    retrained: Model | Sequence[Model] | None,
    beside: dict[str, Model] | None,
    load: Callable[[Model], PixelClassifier],
) -> dict[str, Any]:
    """The ``retrained`` and ``beside`` of a :class:`Comparison`, from one model or several, each by ``load``.

    Raises:
        UnlearningError: ``beside`` is no dict of models by name.
    """
    beside = {} if beside is None else beside
    if not isinstance(beside, dict) or not all(name and isinstance(name, str) for name in beside):
        given = f"names {list(beside)}" if isinstance(beside, dict) else type(beside).__name__
        raise UnlearningError(f"beside must be a dict, name of the row -> model, not {given}: name each model.")
    several = retrained if isinstance(retrained, (list, tuple)) else [] if retrained is None else [retrained]
    return {"retrained": list(map(load, several)), "beside": {name: load(model) for name, model in beside.items()}}
