"""Which options a command's help shows, under which title, and how."""

from __future__ import annotations

import argparse
import copy
import shutil
from dataclasses import fields

from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool

# title -> options of the library; whatever else transformers' TrainingArguments has is shown by --help_all alone.
GROUPS = {
    "model and data": (
        *("model_name_or_path", "original", "unlearned", "dataset_name", "dataset_config", "dataset_revision"),
        *("train_split", "test_split", "image_column_name", "label_column_name", "label_offset", "label_mapping_file"),
        *("model_revision", "cache_dir", "trust_remote_code", "allow_pickled_weights"),
    ),
    "request": (
        *("forget_classes", "forget_indices", "forget_column", "forget_values", "max_forget_samples", "forget_views"),
        "forget_images",
    ),
    "unlearning": (
        *("method", "variant", "adaptive", "scope", "holdout_share", "attack", "attack_eps", "attack_steps"),
        *("proxy_policy", "proxies_per_class", "max_proxies", "constraint", "energy_threshold", "subspace_merge"),
        *("proxy_budget", "proxy_weight", "feature_weight", "pseudo_label", "prior", "tilt", "tilt_temperature"),
        *("influence_sign", "influence_solver", "influence_damping", "with_retain", "max_retain_samples"),
    ),
    "training": (
        *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "optim", "optim_args"),
        *("lr_scheduler_type", "max_grad_norm", "save_strategy", "logging_steps", "dataloader_pin_memory"),
        *("weight_decay", "remove_unused_columns"),
    ),
    "evaluation": (
        *("level", "retain_in_evaluation", "retrained_models", "baselines", "settings"),
        "per_device_eval_batch_size",
    ),
    "hub": (
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "revision", "hub_create_pr", "create_pr"),
        *("hub_token", "hub_strategy"),
    ),
    "running": (
        *("output_dir", "seed", "use_cpu", "num_processes", "disable_tqdm", "json", "config", "help", "help_all"),
    ),
}
METAVARS = {  # by an option's name, or its last word
    **{"dataset_name": "DATA", "model_name_or_path": "MODEL", "original": "MODEL", "unlearned": "MODEL"},
    **{"models": "MODEL", "dir": "FOLDER", "file": "FILE", "config": "FILE", "dataset_config": "NAME"},
    **{"settings": "FILE", "classes": "CLASS", "values": "VALUE", "revision": "REVISION", "token": "TOKEN"},
    "hub_model_id": "USER/NAME",
}
TEXTS = {  # shorter than transformers' own, and true of this library
    "push_to_hub": "Publish the result at the end of the run.",
    "hub_model_id": "Repository to publish in, made where there is none.",
    "hub_private_repo": "Make that repository private. Unset: as the account's default is.",
    "hub_revision": "Branch to publish on; unset: the main branch.",
    "hub_token": "Token for private models, gated data and publishing; unset: the one of `hf auth login`.",
    "output_dir": "Where the results are written.",
    "seed": "Draws batches, random views and the held-out images.",
    "use_cpu": "Compute on the CPU, even where there is a GPU.",
    "disable_tqdm": "No progress bars.",
    "help": "Show this help and exit.",
}
NUMBERS = {int: "N", float: "X"}
WIDTH = 100


class Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def sections(actions: list[argparse.Action], everything: bool) -> dict[str, list[argparse.Action]]:
    """Title -> options to show, each once."""
    grouped = {name for names in GROUPS.values() for name in names}
    inherited = {field.name for field in fields(TrainingArguments)} - grouped
    visible = [action for action in actions if action.help is not argparse.SUPPRESS]
    first = {action.dest: action for action in reversed(visible)}  # --no_x has the name of x
    rest = [name for name in reversed(first) if name not in grouped]
    found = {
        "arguments": [first[name] for name in rest if not first[name].option_strings],
        "options": [first[name] for name in rest if first[name].option_strings and name not in inherited],
        **{title: [first[name] for name in names if name in first] for title, names in GROUPS.items()},
    }
    if everything:
        found["transformers' TrainingArguments"] = [first[name] for name in rest if name in inherited]
    return {title: [shown(action) for action in listed] for title, listed in found.items() if listed}


def shown(action: argparse.Action) -> argparse.Action:
    """An option as the help shows it: one name, a short placeholder, and a default where it says something."""
    copied = copy.copy(action)
    copied.help = TEXTS.get(action.dest, action.help) or ""
    if not action.option_strings or action.nargs == 0:
        return copied
    copied.option_strings = [next(name for name in action.option_strings if name.startswith("--"))]
    is_flag = action.nargs == "?" and action.default is False
    kind = "NAME" if action.nargs is None else "VALUE"
    name = METAVARS.get(action.dest) or METAVARS.get(action.dest.rsplit("_", 1)[-1], NUMBERS.get(action.type, kind))
    if action.type is string_to_bool:
        name = "true|false"
    copied.metavar = f"{name} ..." if action.nargs == "+" else name
    copied.nargs = 0 if is_flag else None
    if action.default not in (None, False, [], -1):  # -1: no limit
        copied.help += " (default: %(default)s)"
    return copied
