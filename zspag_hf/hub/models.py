"""model id -> model and image processor, from the Hub or from a folder."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from pathlib import Path

import torch
import yaml
from huggingface_hub import metadata_load
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, WEIGHTS_NAME

from ..errors import UnlearningError, first_line
from .architectures import check_architecture
from .checkpoint import CARD_NAME, DOING, MERGE, SMALL_FILES, check_config, refusal, weight_files
from .errors import reason
from .repository import DEFAULT, Files, HubOptions, fetch, find

INHERITED = ("license", "license_name", "license_link", "language")
# What from_pretrained raises on files that are damaged or do not fit together.
BUILTIN = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError)
CONTENT_ERRORS = (*BUILTIN, EOFError, StrictDataclassError, SafetensorError, pickle.UnpicklingError)


def load_classifier(model: str | os.PathLike, *, processor=None, hub: HubOptions = DEFAULT):
    """Load a classifier and its image processor by Hub id or local folder.

    All that config and list of files tell is checked before the weights are fetched. Only the commit that was resolved
    first is read, and only safetensors unless asked otherwise: no pull request, and no conversion service is asked.

    Args:
        model: Hub id (``"user/name"``) or a folder written by ``save_pretrained``.
        processor: an image processor to use in place of the repository's own.

    Returns:
        ``(model, processor)``; weights in float32. :func:`source_of` tells the commit that was loaded.

    Raises:
        UnlearningError: no such model, no permission, no network and nothing cached, an adapter, code of its own, no
            safetensors weights, damaged files, weights missing (a backbone without a head) or of another shape than the
            config asks for, or no image processor.
    """
    found = find_model(model, hub, DOING)
    check_config(found, hub)
    weights, pickled = weight_files(found, hub)
    if processor is None:
        processor = processor_of(found, hub)
    fetch(found, hub, weights, DOING)
    loaded = read_model(found, hub, pickled)
    if found.commit is not None:
        loaded.name_or_path = loaded.config.name_or_path = found.name
        loaded.config._commit_hash = found.commit  # transformers leaves it out of what it saves
    return loaded, processor


def load_processor(model: str | os.PathLike, hub: HubOptions = DEFAULT):
    """The image processor saved beside a model.

    Raises:
        UnlearningError: no such repository or folder, or it holds no image processor.
    """
    return processor_of(find_model(model, hub, "load an image processor from"), hub)


def resolve_model(model, processing_class, hub: HubOptions = DEFAULT):
    """A loaded model with its image processor, from an id, a folder or a model.

    Raises:
        UnlearningError: neither loads, or the model carries an adapter.
    """
    if isinstance(model, (str, os.PathLike)):
        return load_classifier(model, processor=processing_class, hub=hub)
    if not isinstance(model, PreTrainedModel):
        raise UnlearningError(
            f"a model must be a Hub id, a folder or a transformers model, not a {type(model).__name__}: for a plain"
            " module see zspag_hf.hub.adapter."
        )
    check_no_adapter(model)
    check_architecture(model.config.model_type, model.config.problem_type)
    if processing_class is None:
        if not model.config._name_or_path:
            raise UnlearningError("a model given as an object needs its image processor: pass processing_class.")
        processing_class = load_processor(model.config._name_or_path, hub)
    return model, processing_class


def source_of(model: PreTrainedModel) -> tuple[str, str | None]:
    """Where a model came from: its Hub id and commit, or the last part of its folder's path and None.

    The commit is None for a model that was loaded without this library, unless from a folder of the Hub's cache.
    """
    name = model.config._name_or_path
    if (commit := vars(model.config).get("_commit_hash")) is not None:
        return name, commit
    path = Path(name)
    if (cached := re.search(r"models--([^/]+)/snapshots/([0-9a-f]{40})$", path.as_posix())) is not None:
        return cached[1].replace("--", "/"), cached[2]
    if not name:
        return type(model).__name__, None
    is_id = len(path.parts) <= 2 and not path.is_absolute() and not path.is_dir()
    return (name if is_id else path.resolve().name), None


def inherited_card(name: str | os.PathLike, hub: HubOptions = DEFAULT) -> dict[str, str | list[str]]:
    """Licence and language that a model's card gives: license, license_name, license_link, language, those present.

    A card that cannot be read costs a warning and no error: a model given as an object may bear a name that leads
    nowhere. No card, or none with such entries, is an empty dict.
    """
    if not str(name):
        return {}
    try:
        found = find(name, hub, [CARD_NAME], "read the card of")
        if CARD_NAME not in found.listed:
            return {}
        metadata = metadata_load(found.path(CARD_NAME)) or {}
    except (UnlearningError, yaml.YAMLError, ValueError) as error:
        warnings.warn(f"no licence is taken over from the original: {first_line(error)}", stacklevel=2)
        return {}
    return {key: metadata[key] for key in INHERITED if isinstance(metadata.get(key), (str, list))}


def find_model(model: str | os.PathLike, hub: HubOptions, doing: str) -> Files:
    return find(model, hub, SMALL_FILES + (["*.py"] if hub.trust_remote_code else []), doing)


def processor_of(found: Files, hub: HubOptions):
    try:
        return AutoImageProcessor.from_pretrained(
            found.folder, trust_remote_code=hub.trust_remote_code, token=hub.token, cache_dir=hub.cache_dir
        )
    except CONTENT_ERRORS as error:
        named = found.listed & {IMAGE_PROCESSOR_NAME, PROCESSOR_NAME}
        why = reason(error, found.name) or (first_line(error) if named else f"{IMAGE_PROCESSOR_NAME} is missing.")
        raise UnlearningError(
            f"{found.name!r} holds no image processor: {why} Pass processing_class=, for example"
            " AutoImageProcessor.from_pretrained(the base model), or trust_remote_code=True if it brings its code."
        ) from error


def read_model(found: Files, hub: HubOptions, pickled: bool) -> PreTrainedModel:
    """The model, from files that are all in ``found.folder``.

    Raises:
        UnlearningError: damaged files, or files that do not belong together.
    """
    try:
        loaded, missed = AutoModelForImageClassification.from_pretrained(
            found.folder,
            use_safetensors=not pickled,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named and refused below
            trust_remote_code=hub.trust_remote_code,
            token=hub.token,
            cache_dir=hub.cache_dir,
        )
    except CONTENT_ERRORS as error:
        if isinstance(error, SafetensorError):
            why = f"its weights are damaged ({error}). Copy or download them again."
        elif pickled:
            why = f"its {WEIGHTS_NAME} is damaged, holds more than tensors, or does not fit its {CONFIG_NAME}."
        else:
            why = f"{type(error).__name__}: {first_line(error)} Give a model saved by save_pretrained."
        raise refusal(found, reason(error, found.name) or why) from error
    check_weights(found, missed)
    return loaded


def check_weights(found: Files, missed: dict) -> None:
    """Refuse layers that would be drawn at random: they have nothing to forget.

    Raises:
        UnlearningError: weights missing, or of another shape than config.json asks for.
    """
    if missed["mismatched_keys"]:
        name, saved, built = min(missed["mismatched_keys"])
        raise refusal(
            found,
            f"{name!r} is saved as {tuple(saved)}, and {CONFIG_NAME} asks for {tuple(built)}; drawn at random it would"
            " have nothing to forget. Give id2label a name for each row of the head, or the config that belongs to it.",
        )
    if missed["missing_keys"]:
        raise UnlearningError(
            f"{found.name!r} lacks weights of an image classifier, which would be drawn at random:"
            f" {sorted(missed['missing_keys'])[:3]}. Give a model that was fine-tuned for classification."
        )


def check_no_adapter(model: nn.Module) -> None:
    """Refuse a model with adapter layers: the constraint would not see the weights that are in effect.

    Raises:
        UnlearningError: it is PEFT's, or holds its layers.
    """
    for name, module in model.named_modules():
        if any(kind.__module__.split(".")[0] == "peft" for kind in type(module).__mro__):
            raise UnlearningError(
                f"the model carries an adapter ({type(module).__name__} at {name or 'its root'}). {MERGE}"
            )
