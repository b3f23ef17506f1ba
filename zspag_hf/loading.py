"""model id -> model and image processor, from the Hub or from a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from .errors import UnlearningError


@dataclass(frozen=True)
class HubOptions:
    """How to read from the Hub.

    Attributes:
        revision: branch, tag or commit. token: for private and gated repositories; None for the one that is logged in.
        cache_dir: where files are kept. trust_remote_code: run code that a repository brings along.
        allow_pickled_weights: read pytorch_model.bin where there is no safetensors file.
    """

    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    allow_pickled_weights: bool = False


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
