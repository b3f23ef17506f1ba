"""Options: transformers' HfArgumentParser with YAML defaults, a help in groups, and errors of one line."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, field, fields, make_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..config import LOOP, RECIPE, Option, UnlearningConfig, told
from ..errors import UnlearningError
from ..methods import METHODS, Method, find_method
from .help import Formatter, sections

TRUTHS = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}  # what a flag takes as a value
MOST_OWNERS = 4  # methods that an error lists
NULL = "tag:yaml.org,2002:null"
USAGE = "zspag-hf {} --model_name_or_path MODEL --dataset_name DATA --forget_classes CLASS ..."
EVERYTHING = "Every option of transformers' TrainingArguments works too; --help_all lists them."


class HelpAll(argparse.Action):
    """Print the help with the options of TrainingArguments, and exit."""

    def __call__(self, parser, *_):
        """Of argparse."""
        print(parser.format_help(everything=True))
        parser.exit()


class FirstParser(argparse.ArgumentParser):
    """Finds ``--config`` and ``--method``, which decide what other options there are, before the rest is read."""

    def __init__(self):
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("--config")
        self.add_argument("--method")

    def error(self, message: str) -> NoReturn:
        """As every other bad input."""
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

    def __init__(
        self,
        dataclass_types: Sequence[type],
        *,
        examples: Sequence[str] = (),
        hidden: Collection[str] = (),
        **kwargs: Any,
    ):
        self.examples, self.origin = examples, ""
        super().__init__(dataclass_types, formatter_class=Formatter, allow_abbrev=False, **kwargs)
        self.takes_training_arguments = any(issubclass(kind, TrainingArguments) for kind in self.dataclass_types)
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:  # three states: unset, true, false
                action.nargs, action.const = "?", True
            action.help = argparse.SUPPRESS if action.dest in hidden else action.help
        self.options = {action.dest for action in self._actions if action.option_strings} - {"help"}
        text = told("YAML file of options by name; the command line overrides it.", group="running", metavar="FILE")
        self.add_argument("--config", help=text)
        if self.takes_training_arguments:
            text = told("Show every option of TrainingArguments too.", group="running")
            self.add_argument("--help_all", action=HelpAll, nargs=0, default=argparse.SUPPRESS, help=text)

    def say_defaults(self, recipe: Mapping[str, Any]) -> None:
        """Say in the help what a method has for an option that the run leaves to it."""
        for action in self._actions:
            if recipe.get(action.dest) is not None and isinstance(action.help, Option):
                said = Option(f"{action.help} (here {recipe[action.dest]})")
                vars(said).update(vars(action.help))
                action.help = said

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """One instance of each dataclass, and where there are arguments of no dataclass a namespace with those."""
        path = FirstParser().parse_known_args(argv)[0].config
        if path is not None:
            self.set_defaults(**self.typed(yaml_mapping(path), path))
        namespace, unknown = self.parse_known_args(self.spelled_out(argv))
        if unknown:
            stray = next((text for text in unknown if text.startswith("-")), None)
            self.error(f"{unknown[0]!r} belongs to no option" if stray is None else self.unknown(stray))
        values = vars(namespace)
        made = self.parse_dict(values, allow_extra_keys=True)
        own = {one.name for kind in self.dataclass_types for one in fields(kind)}
        rest = {name: value for name, value in values.items() if name not in own and name != "config"}
        return (*made, argparse.Namespace(**rest)) if rest else made

    def spelled_out(self, argv: list[str]) -> list[str]:
        """``--json MODEL`` as ``--json true MODEL``: a flag takes no value but yes or no."""
        words: list[str] = []
        for text, following in zip(argv, [*argv, "-"][1:], strict=True):
            action = self._option_string_actions.get(text)
            is_bare = not following.startswith("-") and following.lower() not in TRUTHS
            words += [text, "true"] if action is not None and action.nargs == "?" and is_bare else [text]
        return words

    def typed(self, node: yaml.MappingNode, origin: str, allowed: Collection[str] | None = None) -> dict[str, Any]:
        """Options in a YAML mapping, name -> value of the option's type.

        Args:
            origin: the file, for errors. allowed: the names that may stand here; None for every option.
        """
        names, values = set(self.options if allowed is None else allowed), {}
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
                    values[key.value] = getattr(namespace, key.value)
        finally:
            self.origin = ""
        return values

    def unknown(self, text: str, names: Collection[str] | None = None) -> str:
        """What to say of an option that there is not."""
        name = text.partition("=")[0]
        bare = name.lstrip("-").replace("-", "_")
        dashes = "--" if name.startswith("-") else ""
        owners = [owner for owner, kind in METHODS.items() if bare in {one.name for one in fields(kind)}]
        if owners and self.takes_training_arguments and bare not in self.options:
            listed = f"{', '.join(owners[:MOST_OWNERS])}{' and others' if owners[MOST_OWNERS:] else ''}"
            return f"there is no option {name} for this method, but for {listed}: give {dashes}method, or leave it out"
        near = difflib.get_close_matches(bare, sorted(self.options if names is None else names), n=1)
        return f"there is no option {name}" + (f". Did you mean {dashes}{near[0]}?" if near else "")

    def error(self, message: str) -> NoReturn:
        """As every other bad input."""
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # an option by one of its names
        message += "" if message.endswith((".", "?")) else "."
        help_hint = "" if "Did you mean" in message else f" See {self.prog} --help."
        raise UnlearningError(f"{self.origin}{message}{help_hint}")

    def format_help(self, everything: bool = False) -> str:
        """The options in groups; with ``everything`` those of TrainingArguments too."""
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


def method_of(argv: list[str]) -> str:
    """The method that a command line or its ``--config`` names."""
    first = FirstParser().parse_known_args(argv)[0]
    if first.method is None and first.config is not None:
        named = {key.value: node.value for key, node in yaml_mapping(first.config).value}
        return str(named.get("method", "zspag"))
    return first.method or "zspag"


def options_of(kind: type[Method]) -> type:
    """A dataclass of the options of a method that :class:`UnlearningConfig` does not have, for a parser."""
    hints, own = get_type_hints(kind), {one.name for one in fields(UnlearningConfig)}
    made: list[Any] = []
    for one in (one for one in fields(kind) if one.init and one.name not in own):
        text = one.metadata.get("help", "")
        known = {"help": text if isinstance(text, Option) else told(text)}  # of a method that somebody else wrote
        value: dict[str, Any] = {"default": one.default, "default_factory": one.default_factory}
        made.append((one.name, hints[one.name], field(**value, metadata=known)))
    return make_dataclass("MethodOptions", made, kw_only=True)


def parse_run(
    types: Sequence[type], argv: list[str], defaults: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Any, ...]:
    """An instance of each dataclass, the run's options and its method; see :class:`CommandParser`.

    ``--method`` decides which options there are beside those of ``types`` and of :class:`UnlearningConfig`.

    Args:
        defaults: of options, where they are others here.

    Raises:
        UnlearningError: bad input, among it options of the run that the method cannot honour.
    """
    kind = find_method(method_of(argv))
    recipe = {one.name: one.default for one in fields(kind) if one.name in RECIPE}
    unread = {*RECIPE} - {*recipe} | {*(() if kind.loops else LOOP), *(() if kind.trains else ("max_steps",))}
    hidden = {*options.pop("hidden", ()), *unread}
    parser = CommandParser((*types, UnlearningConfig, options_of(kind)), hidden=hidden, **options)
    parser.set_defaults(**(defaults or {}))
    parser.say_defaults(recipe)
    *made, config, own = parser.parse(argv)
    method = kind(**asdict(own))
    method.check(config)
    return (*made, config, method)
