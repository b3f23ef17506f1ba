"""What config and list of files tell about a saved model, before any weight is fetched."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    is_timm_config_dict,
)

from ..errors import UnlearningError, first_line
from .adapter import ModuleConfig
from .architectures import check_architecture
from .repository import Files, HubOptions

ADAPTER_NAME, CARD_NAME = "adapter_config.json", "README.md"
INDICES = [SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME]
SMALL_FILES = [CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, CARD_NAME, *INDICES]
DOING = "load an image classifier from"
MERGE = (
    "Merge it into its base model first: PeftModel.from_pretrained(base, adapter).merge_and_unload(), then"
    " save_pretrained; give that folder."
)


def refusal(found: Files, why: str) -> UnlearningError:
    return UnlearningError(f"cannot {DOING} {found.name!r}: {why}")


def read_json(found: Files, name: str) -> dict:
    """One of the small files.

    Raises:
        UnlearningError: it is not there, or holds no JSON object.
    """
    if name not in found.listed:
        where = "it holds" if found.complete else "the Hub could not be asked, and the local cache holds"
        raise refusal(found, f"{where} no {name}. Give a model saved by save_pretrained.")
    try:
        content = json.loads(Path(found.path(name)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(found, f"its {name} cannot be read: {first_line(error)} Repair or replace it.") from error
    if not isinstance(content, dict):
        raise refusal(found, f"its {name} holds a {type(content).__name__}, not an object. Repair or replace it.")
    return content


def check_config(found: Files, hub: HubOptions) -> None:
    """Refuse what config.json and the list of files show to be no image classifier.

    Raises:
        UnlearningError: an adapter, no or another type of model, code of its own, or labels that contradict.
    """
    if ADAPTER_NAME in found.listed:
        raise refusal(found, f"it holds an adapter ({ADAPTER_NAME}), not a whole model. {MERGE}")
    config = read_json(found, CONFIG_NAME)
    kind = "timm_wrapper" if is_timm_config_dict(config) else config.get("model_type")
    if not known_classifier(kind) and not hub.trust_remote_code:
        if kind == ModuleConfig.model_type:
            raise refusal(
                found,
                "it holds the weights of a plain module and not its code. Load it by"
                " ModuleClassifier.from_pretrained(folder, module=...) and pass that.",
            )
        if "auto_map" in config:
            raise refusal(
                found, f"its type {kind!r} needs code that it brings along. Read it, then pass trust_remote_code=True."
            )
        raise refusal(
            found, f"transformers knows no image classifier of the type {kind!r}. Give a model of another type."
        )
    check_architecture(kind, config.get("problem_type"))
    check_labels(found, config.get("num_labels"), config.get("id2label"))


def known_classifier(kind) -> bool:
    """Whether transformers, or code that was registered with it, can build an image classifier of a ``model_type``."""
    is_known = isinstance(kind, str) and kind in CONFIG_MAPPING
    return is_known and CONFIG_MAPPING[kind] in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def check_labels(found: Files, count: int | None, names: dict | None) -> None:
    """Refuse a config whose labels cannot be told. Without names they are LABEL_0, LABEL_1, ...

    Raises:
        UnlearningError: names that are not one for each id from 0, or another number of them than ``num_labels``.
    """
    if names is None:
        return
    texts = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not texts or set(names) != {str(i) for i in range(len(names))}:
        raise refusal(found, f"id2label in its {CONFIG_NAME} must give every id from 0 a name. Correct it.")
    if count is not None and count != len(names):
        raise refusal(
            found, f"its {CONFIG_NAME} says num_labels {count} and has {len(names)} names in id2label. Correct one."
        )


def weight_files(found: Files, hub: HubOptions) -> tuple[list[str], bool]:
    """The files that hold the weights, and whether they are pickles.

    Raises:
        UnlearningError: there are none, only pickles that were not allowed, or a part is missing.
    """
    for single, index, pickled in zip((SAFE_WEIGHTS_NAME, WEIGHTS_NAME), INDICES, (False, True), strict=True):
        if not found.listed & {single, index}:
            continue
        if pickled and not hub.allow_pickled_weights:
            raise refusal(
                found,
                f"its weights are pickled ({single}), and a pickle can run code when it is read. Save it with"
                f" save_pretrained as {SAFE_WEIGHTS_NAME}, or pass allow_pickled_weights=True if you trust it.",
            )
        return [single] if single in found.listed else part_names(found, index), pickled
    if not found.complete:
        raise refusal(found, "the Hub could not be asked, and the local cache does not hold its weights. Connect once.")
    raise refusal(found, f"it holds no {SAFE_WEIGHTS_NAME}. Give a model saved by save_pretrained.")


def part_names(found: Files, index: str) -> list[str]:
    places = read_json(found, index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refusal(found, f"its {index} names no files of weights. Repair or replace it.")
    parts = sorted(set(map(str, places.values())))
    if absent := [part for part in parts if part not in found.listed]:
        raise refusal(found, f"its {index} names {absent[0]!r}, which is not there. Give all parts of the model.")
    return parts
