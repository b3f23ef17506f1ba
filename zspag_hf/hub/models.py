"""model id -> model and image processor, from the Hub or from a folder."""

import os
import pickle
import re
import warnings
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, WEIGHTS_NAME

from ..errors import UnlearningError, first_line
from .architectures import check_architecture
from .card import card_fields
from .checkpoint import MERGE, PICKLE_INDEX, SAFE_INDEX, check_config, weight_files
from .errors import reason
from .repository import DEFAULT, Files, HubOptions, fetch, find, refusal

Loaded = tuple[PreTrainedModel, BaseImageProcessor]
CARD_NAME = "README.md"
SMALL_FILES = [CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, CARD_NAME, SAFE_INDEX, PICKLE_INDEX]
BUILTIN = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError)
CONTENT_ERRORS = (*BUILTIN, EOFError, StrictDataclassError, SafetensorError, pickle.UnpicklingError)  # of damaged files


def load_classifier(
    model: str | os.PathLike, *, processor: BaseImageProcessor | None = None, hub: HubOptions = DEFAULT
) -> Loaded:
    """Load a classifier, in float32, and its image processor, unless one is given, by Hub id (``"user/name"``) or path.

    All that config and list of files tell is checked before the weights are fetched. Only the commit that was resolved
    first is read, and only safetensors unless asked otherwise: no pull request, and no conversion service is asked.

    Raises:
        UnlearningError: no such model, no permission, no network and nothing cached, an adapter, code of its own, no
            safetensors weights, damaged files, weights missing (a backbone without a head) or of another shape than the
            config asks for, or no image processor.
    """
    files = _find_model(model, hub, "load an image classifier from")
    check_config(files)
    weights, pickled = weight_files(files)
    if processor is None:
        processor = _read_processor(files)
    fetch(files, weights)
    loaded = _read_model(files, pickled)
    if files.commit is not None:
        loaded.name_or_path = loaded.config.name_or_path = files.name
        loaded.config._commit_hash = files.commit  # transformers leaves it out of what it saves
    return loaded, processor


def load_processor(model: str | os.PathLike, hub: HubOptions = DEFAULT) -> BaseImageProcessor:
    """The image processor saved beside a model; refuses a place that holds none."""
    return _read_processor(_find_model(model, hub, "load an image processor from"))


def resolve_model(
    model: str | os.PathLike | PreTrainedModel, processing_class: BaseImageProcessor | None, hub: HubOptions = DEFAULT
) -> Loaded:
    """A loaded model with its image processor, from an id, a folder or a model. Refuses what does not load, and an
    adapter: the constraint would not see the weights that are in effect."""
    if isinstance(model, (str, os.PathLike)):
        return load_classifier(model, processor=processing_class, hub=hub)
    if not isinstance(model, PreTrainedModel):
        raise UnlearningError(
            f"a model must be a Hub id, a folder or a transformers model, not a {type(model).__name__}: for a plain"
            " module see zspag_hf.hub.adapter."
        )
    for name, module in model.named_modules():
        if any(base.__module__.split(".")[0] == "peft" for base in type(module).__mro__):
            kind = type(module).__name__
            raise UnlearningError(f"the model carries an adapter ({kind} at {name or 'its root'}). {MERGE}")
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
    """Licence and language that a model's card gives: license, license_name and license_link as texts, language as a
    code or a list of codes, those present.

    A card that cannot be read, or a field that is something else, costs a warning and no error: the request goes on
    without. A model given as an object may bear a name of nothing.
    """
    if not str(name):
        return {}
    fields, wrong = dict[str, str | list[str]](), list[str]()
    try:
        files = find(name, hub, [CARD_NAME], "read the card of")
        if CARD_NAME in files.listed:
            path = Path(files.folder, CARD_NAME)
            fields, wrong = card_fields(path) if path.is_file() else ({}, [f"its {CARD_NAME} is no regular file"])
    except (UnlearningError, yaml.YAMLError, ValueError) as error:
        warnings.warn(f"no licence is taken over from the original: {first_line(error)}", stacklevel=2)
    if wrong:
        warnings.warn(f"not all is taken over from the original's card: {'; '.join(wrong)}.", stacklevel=2)
    return fields


def _find_model(model: str | os.PathLike, hub: HubOptions, doing: str) -> Files:
    return find(model, hub, SMALL_FILES + ["*.py"] * hub.trust_remote_code, doing)


def _read_processor(files: Files) -> BaseImageProcessor:
    try:
        return AutoImageProcessor.from_pretrained(files.folder, **_for_auto(files.hub))
    except CONTENT_ERRORS as error:
        named = files.listed & {IMAGE_PROCESSOR_NAME, PROCESSOR_NAME}
        why = reason(error) or (first_line(error) if named else f"{IMAGE_PROCESSOR_NAME} is missing.")
        raise UnlearningError(
            f"{files.name!r} holds no image processor: {why} Pass processing_class=, for example"
            " AutoImageProcessor.from_pretrained(the base model), or trust_remote_code=True if it brings its code."
        ) from error


def _read_model(files: Files, pickled: bool) -> PreTrainedModel:
    """The model, from files that are all in ``files.folder``. Refused are files that are damaged or do not belong
    together, and layers that would be drawn at random: they have nothing to forget."""
    try:
        loaded, missed = AutoModelForImageClassification.from_pretrained(
            files.folder,
            use_safetensors=not pickled,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named and refused below
            **_for_auto(files.hub),
        )
    except CONTENT_ERRORS as error:
        if isinstance(error, SafetensorError):
            why = f"its weights are damaged ({error}). Copy or download them again."
        elif pickled:
            why = f"its {WEIGHTS_NAME} is damaged, holds more than tensors, or does not fit its {CONFIG_NAME}."
        else:
            why = f"{type(error).__name__}: {first_line(error)} Give a model saved by save_pretrained."
        raise refusal(files, reason(error) or why) from error
    if missed["mismatched_keys"]:
        name, saved, built = min(missed["mismatched_keys"])
        raise refusal(
            files,
            f"{name!r} is saved as {tuple(saved)}, and {CONFIG_NAME} asks for {tuple(built)}; drawn at random it would"
            " have nothing to forget. Give id2label a name for each row of the head, or the config that belongs to it.",
        )
    if missed["missing_keys"]:
        raise UnlearningError(
            f"{files.name!r} lacks weights of an image classifier, which would be drawn at random:"
            f" {sorted(missed['missing_keys'])[:3]}. Give a model that was fine-tuned for classification."
        )
    return loaded


def _for_auto(hub: HubOptions) -> dict:
    return {"trust_remote_code": hub.trust_remote_code, "token": hub.token, "cache_dir": hub.cache_dir}
