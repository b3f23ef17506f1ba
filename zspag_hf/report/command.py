"""The command that repeats a run, from its report: for the model card."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from typing import Any

from .report import UnlearningReport

TOLD = ("forget_classes", "model_revision", "seed", "level")  # by other parts of the report
COLUMNS, GLUE = 100, "\0"  # of the command, in characters; a space that is no place to fold


def command(report: UnlearningReport) -> str:
    """The command that repeats the run, with the options that were given, folded to COLUMNS; none holds a folder, a
    token, where it was published, or which images were forgotten."""
    on_hub, request = report.base_revision is not None, report.request or {}
    parts = [["zspag-hf", "unlearn"], ["--model_name_or_path", report.base_model if on_hub else "BASE"]]
    parts += [["--model_revision", report.base_revision]] if report.base_revision is not None else []
    parts += [["--dataset_name", report.dataset or "DATA"]]
    parts += [["--public_dataset_name", "PUBLIC"]] if report.public_images else []
    parts += [["--forget_classes", *class_words(report)]] if request.get("classes") else []
    parts += [["--method", report.method]] if report.method != "zspag" else []
    parts += [["--seed", str(report.seed)]]
    for name, value in report.given.items():
        if name not in TOLD and not name.startswith("hub_") and value is not None:
            parts.append([f"--{name}", *words(value)])
    parts += [["--level", report.level]] if report.level not in (None, "quick") else []
    return folded([[shlex.quote(word) for word in part] for part in parts])


def words(value: Any) -> list[str]:
    """An option's value as it is written on the command line."""
    if isinstance(value, list):
        return [word for item in value for word in words(item)]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def folded(parts: list[list[str]]) -> str:
    """Words in lines of at most COLUMNS where that can be; an option stands beside its value."""
    glued = [word.replace(" ", GLUE) for part in parts for word in (GLUE.join(part[:2]), *part[2:])]
    lines = textwrap.wrap(
        " ".join(glued), COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines).replace(GLUE, " ")


def class_words(report: UnlearningReport) -> list[str]:
    """The classes as they were named, or by id where a name could be taken for an option or end the block of code."""
    given = [str(name) for name in report.config.get("forget_classes") or []]
    plain = given and all(re.fullmatch(r"\w[\w .,'()&/+-]*", name) for name in given)
    return given if plain else [str(known["id"]) for known in (report.request or {})["classes"]]
