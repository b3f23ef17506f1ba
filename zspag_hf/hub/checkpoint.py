"""What config and list of files tell about a saved model, before any weight is fetched."""

import json
from pathlib import Path

from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.utils import CONFIG_NAME, is_timm_config_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME as SAFE_INDEX
from transformers.utils import SAFE_WEIGHTS_NAME as SAFE_NAME
from transformers.utils import WEIGHTS_INDEX_NAME as PICKLE_INDEX
from transformers.utils import WEIGHTS_NAME as PICKLE_NAME

from ..errors import first_line
from .adapter import ModuleConfig
from .architectures import check_architecture
from .repository import Files, refusal

ADAPTER_NAME = "adapter_config.json"
MERGE = (
    "Merge it into its base model first: PeftModel.from_pretrained(base, adapter).merge_and_unload(), then"
    " save_pretrained; give that folder."
)


def read_json(files: Files, name: str) -> dict:
    """One of the small files; refuses one that is not there, or holds no JSON object."""
    if name not in files.listed:
        where = "it holds" if files.complete else "the Hub could not be asked, and the local cache holds"
        raise refusal(files, f"{where} no {name}. Give a model saved by save_pretrained.")
    try:
        content = json.loads(Path(files.folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(files, f"its {name} cannot be read: {first_line(error)} Repair or replace it.") from error
    if not isinstance(content, dict):
        raise refusal(files, f"its {name} holds a {type(content).__name__}, not an object. Repair or replace it.")
    return content


def check_config(files: Files) -> None:
    """Refuse what config.json and the list of files show to be no image classifier: an adapter, no or another type of
    model, code of its own, or labels that contradict."""
    if ADAPTER_NAME in files.listed:
        raise refusal(files, f"it holds an adapter ({ADAPTER_NAME}), not a whole model. {MERGE}")
    config = read_json(files, CONFIG_NAME)
    kind = "timm_wrapper" if is_timm_config_dict(config) else config.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING  # what was registered with transformers too
    if not (files.hub.trust_remote_code or (known and CONFIG_MAPPING[kind] in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)):
        why = f"transformers knows no image classifier of the type {kind!r}. Give a model of another type."
        if kind == ModuleConfig.model_type:
            load = "ModuleClassifier.from_pretrained(folder, module=...)"
            why = f"it holds the weights of a plain module and not its code. Load it by {load} and pass that."
        elif "auto_map" in config:
            why = f"its type {kind!r} needs code that it brings along. Read it, then pass trust_remote_code=True."
        raise refusal(files, why)
    check_architecture(kind, config.get("problem_type"))
    count, names = config.get("num_labels"), config.get("id2label")
    if names is None:  # they are LABEL_0, LABEL_1, ...
        return
    texts = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not texts or set(names) != {str(i) for i in range(len(names))}:
        raise refusal(files, f"id2label in its {CONFIG_NAME} must give every id from 0 a name. Correct it.")
    if count is not None and count != len(names):
        why = f"its {CONFIG_NAME} says num_labels {count} and has {len(names)} names in id2label. Correct one."
        raise refusal(files, why)


def weight_files(files: Files) -> tuple[list[str], bool]:
    """The files that hold the weights, and whether they are pickles; refuses none, a missing part, and pickles that are
    not allowed."""
    for name, index, pickled in ((SAFE_NAME, SAFE_INDEX, False), (PICKLE_NAME, PICKLE_INDEX, True)):
        if not files.listed & {name, index}:
            continue
        if pickled and not files.hub.allow_pickled_weights:
            why = f"its weights are pickled ({name}), and a pickle can run code when it is read. Save it with"
            mend = f"save_pretrained as {SAFE_NAME}, or pass allow_pickled_weights=True if you trust it."
            raise refusal(files, f"{why} {mend}")
        return [name] if name in files.listed else _part_names(files, index), pickled
    if not files.complete:
        raise refusal(files, "the Hub could not be asked, and the local cache does not hold its weights. Connect once.")
    raise refusal(files, f"it holds no {SAFE_NAME}. Give a model saved by save_pretrained.")


def _part_names(files: Files, index: str) -> list[str]:
    places = read_json(files, index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refusal(files, f"its {index} names no files of weights. Repair or replace it.")
    parts = sorted(set(map(str, places.values())))
    if absent := [part for part in parts if part not in files.listed]:
        raise refusal(files, f"its {index} names {absent[0]!r}, which is not there. Give all parts of the model.")
    return parts
