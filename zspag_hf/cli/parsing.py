"""Options: transformers' HfArgumentParser with YAML defaults, a help in groups, and errors of one line."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..errors import UnlearningError
from .exit_status import reported
from .help import Formatter, sections

__all__ = ["CommandParser", "parse", "reported"]

TRUTHS = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}  # what a flag takes as a value
NULL = "tag:yaml.org,2002:null"
USAGE = "zspag-hf {} --model_name_or_path MODEL --dataset_name DATA --forget_classes CLASS ..."
EVERYTHING = "Every option of transformers' TrainingArguments works too; --help_all lists them."


class HelpAll(argparse.Action):
    """Print the help with the options of TrainingArguments, and exit."""

    def __call__(self, parser, *_):
        print(parser.format_help(everything=True))
        parser.exit()


class ConfigParser(argparse.ArgumentParser):
    """Finds ``--config`` before the rest is read."""

    def __init__(self):
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("--config")

    def error(self, message: str):
        raise UnlearningError(f"{message}.")


class CommandParser(HfArgumentParser):
    """The options of dataclasses, as ``HfArgumentParser`` makes them.

    ``--config run.yaml`` gives defaults by name, which the command line overrides. Values in the file are read as they
    would be on the command line; null leaves an option as it is. There are no abbreviations.

    Args:
        dataclass_types: their fields are the options.
        examples: command lines for the help.
        hidden: options that the help leaves out, as they say nothing here.
        kwargs: of ``argparse.ArgumentParser``: prog, usage, description.

    Raises:
        UnlearningError: from every method, for bad input, in place of argparse's exit.
    """

    def __init__(self, dataclass_types, *, examples: Sequence[str] = (), hidden: Collection[str] = (), **kwargs):
        self.examples, self.origin = examples, ""
        super().__init__(dataclass_types, formatter_class=Formatter, allow_abbrev=False, **kwargs)
        self.takes_training_arguments = any(issubclass(kind, TrainingArguments) for kind in self.dataclass_types)
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:  # three states: unset, true, false
                action.nargs, action.const = "?", True
            action.help = argparse.SUPPRESS if action.dest in hidden else action.help
        self.options = {action.dest for action in self._actions if action.option_strings} - {"help"}
        self.add_argument("--config", help="YAML file of options by name; the command line overrides it.")
        if self.takes_training_arguments:
            self.add_argument(
                "--help_all",
                action=HelpAll,
                nargs=0,
                default=argparse.SUPPRESS,
                help="Show every option of TrainingArguments too.",
            )

    def parse(self, argv: list[str]) -> tuple:
        """One instance of each dataclass, and where there are arguments of no dataclass a namespace with those."""
        path = ConfigParser().parse_known_args(argv)[0].config
        if path is not None:
            self.set_defaults(**self.read_yaml(path))
        namespace, unknown = self.parse_known_args(self.spelled_out(argv))
        if unknown:
            option = next((text for text in unknown if text.startswith("-")), None)
            self.error(f"{unknown[0]!r} belongs to no option" if option is None else self.unknown(option))
        values = vars(namespace)
        made = self.parse_dict(values, allow_extra_keys=True)
        own = {field.name for kind in self.dataclass_types for field in fields(kind)}
        rest = {name: value for name, value in values.items() if name not in own and name != "config"}
        return (*made, argparse.Namespace(**rest)) if rest else made

    def spelled_out(self, argv: list[str]) -> list[str]:
        """``--json MODEL`` as ``--json true MODEL``: a flag takes no value but yes or no."""
        found = []
        for text, following in zip(argv, [*argv, "-"][1:], strict=True):
            action = self._option_string_actions.get(text)
            is_bare = not following.startswith("-") and following.lower() not in TRUTHS
            found += [text, "true"] if action is not None and action.nargs == "?" and is_bare else [text]
        return found

    def read_yaml(self, path: str) -> dict:
        """The options in a YAML file, name -> value of the option's type."""
        return self.typed(yaml_mapping(path), path)

    def typed(self, node: yaml.MappingNode, origin: str, allowed: set[str] | None = None) -> dict:
        """Options in a YAML mapping, by name.

        Args:
            origin: the file, for errors. allowed: the names that may stand here; None for every option.
        """
        names, found = self.options if allowed is None else allowed, {}
        counts = Counter(key.value for key, _ in node.value)
        self.origin = f"{origin}: "
        try:
            for key, value in node.value:
                if key.value not in names:
                    self.error(self.unknown(key.value, names))
                if counts[key.value] > 1:
                    self.error(f"{key.value!r} stands there twice")
                given = as_arguments(key.value, value)
                if given:
                    namespace, rest = self.parse_known_args(given)
                    if rest:
                        self.error(f"{key.value!r} takes one value, not {len(rest) + 1}")
                    found[key.value] = getattr(namespace, key.value)
        finally:
            self.origin = ""
        return found

    def unknown(self, option: str, names: set[str] | None = None) -> str:
        name = option.partition("=")[0]
        bare = name.lstrip("-").replace("-", "_")
        near = difflib.get_close_matches(bare, sorted(self.options if names is None else names), n=1)
        dashes = "--" if name.startswith("-") else ""
        return f"there is no option {name}" + (f". Did you mean {dashes}{near[0]}?" if near else "")

    def error(self, message: str):
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # an option by one of its names
        message += "" if message.endswith((".", "?")) else "."
        help_hint = "" if "Did you mean" in message else f" See {self.prog} --help."
        raise UnlearningError(f"{self.origin}{message}{help_hint}")

    def format_help(self, everything: bool = False) -> str:
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for title, actions in sections(self._actions, everything).items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        if self.takes_training_arguments and not everything:
            formatter.add_text(EVERYTHING)
        if self.examples:
            formatter.add_text("\n".join(["examples:", *(f"  {line}" for line in self.examples)]))
        return formatter.format_help()


def yaml_mapping(path: str) -> yaml.MappingNode:
    """A YAML file's nodes: scalars as they were written, so that a class called "no" stays "no".

    Raises:
        UnlearningError: no such file, or no mapping in YAML.
    """
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UnlearningError(f"the file {path!r} cannot be read: {error}. Give a YAML file.") from error
    except yaml.YAMLError as error:
        raise UnlearningError(f"{path!r} is no valid YAML: {' '.join(str(error).split())}. Mend it.") from error
    node = node or yaml.MappingNode("tag:yaml.org,2002:map", [])  # an empty file
    if not isinstance(node, yaml.MappingNode):
        raise UnlearningError(f"{path!r} holds no names with values: write one a line, such as 'seed: 1'.")
    return node


def as_arguments(name: str, node: yaml.Node) -> list[str]:
    """A YAML value as it would be written on the command line; nothing for null and an empty list."""
    if isinstance(node, yaml.MappingNode):
        return [f"--{name}={json.dumps(yaml.safe_load(yaml.serialize(node)))}"]
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise UnlearningError(f"the list {name!r} holds lists: write its values one after the other.")
        items = [item.value for item in node.value]
        return [f"--{name}", *items] if items else []
    return [] if node.tag == NULL else [f"--{name}={node.value}"]


def parse(dataclass_types, argv: list[str], **options) -> tuple:
    """One instance of each dataclass from a command line; see :class:`CommandParser`."""
    return CommandParser(dataclass_types, **options).parse(argv)
