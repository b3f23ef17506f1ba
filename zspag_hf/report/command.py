"""The command that repeats a run, from its report: for the model card."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import fields

from ..adaptive.first_step import ROUND_STEPS
from ..config import ADAPTIVE, PAPER, UnlearningConfig
from ..methods import METHODS
from ..trainer.reads import FEW_LABELS, SURE, TARGETS, unread
from .report import UnlearningReport

WIDTH, GLUE = 100, "\0"  # of the command, in characters; a space that is no place to fold
# Options that repeat a run. None holds a folder, a token, or which images were forgotten.
# fmt: off
REPEATED = (
    "method", "variant", "adaptive", "forget_views", "holdout_share", "attack", "attack_eps", "attack_steps",
    "proxy_policy", "proxies_per_class", "max_proxies", "constraint", "energy_threshold", "subspace_merge", "scope",
    "proxy_budget", "proxy_weight", "feature_weight", "pseudo_label", "prior", "tilt", "tilt_temperature",
    "influence_sign", "influence_solver", "influence_damping", "image_column_name", "label_column_name",
    "label_offset", "trust_remote_code", "allow_pickled_weights", "learning_rate", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "optim", "optim_args", "weight_decay", "lr_scheduler_type", "max_grad_norm",
    "with_retain", "max_retain_samples",
)
# fmt: on


def command(report: UnlearningReport) -> str:
    """The command that repeats the run, with the options that differ from the defaults, folded to WIDTH."""
    on_hub, request = report.base_revision is not None, report.request
    parts = [["zspag-hf", "unlearn"], ["--model_name_or_path", report.base_model if on_hub else "BASE"]]
    parts += [["--model_revision", report.base_revision]] if on_hub else []
    parts += [["--dataset_name", report.dataset or "DATA"]]
    parts += [["--forget_classes", *class_words(report)]] if request["classes"] else []
    parts += [["--seed", str(report.seed)]]
    for name, value in changed_options(report).items():
        parts.append([f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)])
    parts += [["--level", report.level]] if report.level not in (None, "quick") else []
    return folded([[shlex.quote(word) for word in part] for part in parts])


def folded(parts: list[list[str]]) -> str:
    """Words in lines of at most WIDTH where that can be; an option stands beside its value."""
    words = [word.replace(" ", GLUE) for part in parts for word in (GLUE.join(part[:2]), *part[2:])]
    lines = textwrap.wrap(
        " ".join(words), WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines).replace(GLUE, " ")


def class_words(report: UnlearningReport) -> list[str]:
    """The classes as they were named, or by id where a name could be taken for an option or end the block of code."""
    given = [str(name) for name in report.config.get("forget_classes") or []]
    plain = given and all(re.fullmatch(r"\w[\w .,'()&/+-]*", name) for name in given)
    return given if plain else [str(known["id"]) for known in report.request["classes"]]


def changed_options(report: UnlearningReport) -> dict:
    """Options of REPEATED that are not what they come to when left unset, nor what the run chose."""
    config, usual = report.config, {f.name: f.default for f in fields(UnlearningConfig)}
    paper = config.get("variant") == "paper"
    usual |= PAPER if paper else ADAPTIVE
    method = METHODS[config.get("method", "zspag")]
    usual |= {"optim": "sgd", "weight_decay": 0.0, "with_retain": method.needs_retain}
    if method is not METHODS["zspag"]:
        usual |= {"constraint": "none"}
        if config.get("pseudo_label") is None:
            usual |= dict.fromkeys(TARGETS)
    if config.get("prior") == SURE:
        usual |= {"tilt": "none"}
    if config.get("adaptive"):
        usual |= {"max_steps": 1000} | {name: config.get(name) for name in chosen_options(report.choice)}
    elif not paper or method is not METHODS["zspag"]:
        soft = config.get("constraint") == usual["constraint"] == "soft"
        settings = method.retained_settings if config.get("with_retain") else method.settings
        usual |= settings(FEW_LABELS)  # how many there are is not in the report
        if not paper:
            usual["adaptive"] = soft and config.get("num_train_epochs") == usual["num_train_epochs"]  # else implied
            usual["energy_threshold"] = 0.99 if config.get("constraint") == "hard" else 0.999
            usual |= {name: value for name, value in settings(FEW_LABELS).items() if name == "energy_threshold"}
    epochs = {"num_train_epochs": None} if config.get("adaptive") else {}
    dropped = unread({f.name: f.default for f in fields(UnlearningConfig)} | config | epochs)
    names = [name for name in REPEATED if name in config and name not in dropped]
    found = {name: config[name] for name in names if config[name] != usual[name]}
    if "pseudo_label" in names and config["pseudo_label"] is not None and not found.keys() & set(TARGETS):
        own = method is METHODS["zspag"] or method.settings(FEW_LABELS).get("pseudo_label")
        found |= {} if own else {"pseudo_label": config["pseudo_label"]}  # targets that are named at all
    return found


def chosen_options(choice: dict) -> list[str]:
    """Which of the two options that an adaptive run can choose it did choose: several dampings were tried; the rate is
    that of the damping's first step."""
    tried = choice["probe"]
    steps = [record["step"] for record in tried if record["energy_threshold"] == choice["energy_threshold"]]
    found = ["energy_threshold"] if len(tried) > 1 else []
    return [*found, "learning_rate"] if choice["learning_rate"] in [step / ROUND_STEPS for step in steps] else found
