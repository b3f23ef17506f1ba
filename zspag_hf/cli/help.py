"""Which options a command's help shows, under which title, and how: by what each option says of itself."""

from __future__ import annotations

import argparse
import copy
import shutil
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..config import Option

GROUPS = ("model and data", "request", "unlearning", "training", "evaluation", "hub", "running")
NUMBERS: dict[Any, str] = {int: "N", float: "X"}
WIDTH = 100


class Formatter(argparse.RawDescriptionHelpFormatter):
    """At most WIDTH columns."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def sections(actions: list[argparse.Action], everything: bool) -> dict[str, list[argparse.Action]]:
    """Title -> options to show, each once; what is TrainingArguments' own is shown with ``everything`` alone."""
    inherited = {one.name for one in fields(TrainingArguments)}
    visible = [action for action in actions if action.help is not argparse.SUPPRESS]
    first = {action.dest: action for action in reversed(visible)}  # --no_x has the name of x
    groups: dict[str, list[argparse.Action]] = {title: [] for title in ("arguments", *GROUPS, "options")}
    rest = []
    for action in reversed(first.values()):
        group = action.help.group if isinstance(action.help, Option) else None
        if group is not None:
            groups[group].append(shown(action))
        elif action.dest in inherited:
            rest.append(shown(action))
        else:
            title = "running" if action.dest == "help" else "options" if action.option_strings else "arguments"
            groups[title].append(shown(action))
    if everything:
        groups["transformers' TrainingArguments"] = rest
    return {title: listed for title, listed in groups.items() if listed}


def shown(action: argparse.Action) -> argparse.Action:
    """An option as the help shows it: one name, a short placeholder, and a default where it says something."""
    copied, known = copy.copy(action), action.help if isinstance(action.help, Option) else None
    copied.help = str(action.help or "")
    if not action.option_strings or action.nargs == 0:
        return copied
    copied.option_strings = [next(name for name in action.option_strings if name.startswith("--"))]
    is_flag = action.nargs == "?" and action.default is False
    placeholder = "NAME" if action.nargs is None else "VALUE"
    name = (known and known.metavar) or NUMBERS.get(action.type, placeholder)
    if action.type is string_to_bool:
        name = "true|false"
    copied.metavar = f"{name} ..." if action.nargs == "+" else name
    copied.nargs = 0 if is_flag else None
    if action.default not in (None, False, [], -1):  # -1: no limit, or the method's own
        copied.help += " (default: %(default)s)"
    return copied
