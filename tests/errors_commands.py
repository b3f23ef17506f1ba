"""Bad command lines and option files."""

import os
from pathlib import Path
from unittest import mock

import torch
from errors_case import Case, a_file, a_model

from zspag_hf.cli import dispatch


def command(*argv: str):
    """A feed: a command line; a word FILE stands for the file, or folder, that was given."""
    return lambda given: dispatch([str(given) if word == "FILE" else word for word in argv])


def on_gpus(count: int, *argv: str):
    def feed(_folder: Path):
        with mock.patch.object(torch.cuda, "device_count", lambda: count):
            return dispatch([*argv])

    return feed


def launched(*argv: str):
    """A feed: a command line in one of two processes."""

    def feed(_folder: Path):
        with mock.patch.dict(os.environ, {"WORLD_SIZE": "2"}):
            return dispatch([*argv])

    return feed


def in_file(name: str, text: str, value: str, mend: str) -> Case:
    """A row of bad options in a file."""
    return Case(name, command("unlearn", "--config", "FILE"), value, mend, a_file(text, "run.yaml"))


def setting(name: str, text: str, value: str, mend: str) -> Case:
    """A row of a bad file of settings to compare."""
    return Case(name, command("compare", "--settings", "FILE"), value, mend, a_file(text, "settings.yaml"))


WORDS = [
    Case("an unknown command", command("unlern"), "'unlern'", "Did you mean 'unlearn'"),
    Case("an option before the command", command("--forget"), "--forget", "zspag-hf --help"),
    Case(
        "an unknown option",
        command("unlearn", "--forget_clases", "cat"),
        "--forget_clases",
        "Did you mean --forget_classes",
    ),
    Case("an option of another method", command("unlearn", "--method", "ssd", "--scope", "all"), "--scope", "--help"),
    Case("an unknown method", command("unlearn", "--method", "forgetful"), "'forgetful'", "'zspag'"),
    Case(
        "an option that the method cannot honour",
        command("unlearn", "--num_train_epochs", "3"),
        "num_train_epochs=3",
        "Give max_steps",
    ),
    Case("an option without value", command("unlearn", "--config"), "--config", "expected one argument"),
    Case("a word that belongs nowhere", command("info", "model", "extra"), "'extra'", "zspag-hf info --help"),
    Case("a text for a number", command("unlearn", "--max_proxies", "many"), "'many'", "zspag-hf unlearn --help"),
    Case("an option out of range", command("unlearn", "--max_proxies", "0"), "max_proxies=0", "at least 1"),
    Case("an unknown level", command("unlearn", "--level", "deep"), "level='deep'", "'full'"),
    Case("unknown baselines", command("unlearn", "--baselines", "some"), "baselines='some'", "'few'"),
    Case("no process", command("unlearn", "--num_processes", "0"), "num_processes=0", "at least 1"),
    Case("more processes than GPUs", on_gpus(2, "unlearn", "--num_processes", "3"), "num_processes=3", "use_cpu=true"),
    Case("processes within a launch", launched("unlearn", "--num_processes", "3"), "num_processes=3", "one of the two"),
    Case("an id without a push", command("unlearn", "--hub_model_id", "user/out"), "'user/out'", "--push_to_hub"),
]

FILES = [
    Case("no such file", command("unlearn", "--config", "gone.yaml"), "'gone.yaml'", "Give a YAML file"),
    in_file("no YAML", "a: [", "/run.yaml'", "YAML"),
    in_file("a list", "- a", "/run.yaml'", "write one a line"),
    in_file("lists in a list", "forget_classes: [[cat]]", "'forget_classes'", "one after the other"),
    in_file("an unknown name", "forget_clases: [cat]", "forget_clases", "Did you mean forget_classes"),
    in_file("a name twice", "seed: 1\nseed: 2", "'seed' stands there twice", "zspag-hf unlearn --help"),
    setting("a bad setting", "deep: {scope: tail}", "'deep': scope='tail'", "'head'"),
    setting("a setting of no method", "deep: {method: forgetful}", "'deep': method='forgetful'", "'zspag'"),
    setting("an option of the run in a setting", "deep: {output_dir: x}", "output_dir", "zspag-hf compare --help"),
    setting("a setting by a taken name", "masked: {scope: all}", "'masked'", "another name"),
    setting("a setting without options", "deep: all", "'deep'", "{scope: head}"),
]

NEEDED = [
    Case("no model", command("info"), "no model", "zspag-hf info MODEL"),
    Case("neither true nor false", command("push", "--create_pr", "perhaps"), "'perhaps'", "zspag-hf push --help"),
    Case("nothing to push", command("push"), "what and where to", "--hub_model_id"),
    Case("one model to evaluate", command("evaluate", "--original", "user/vit"), "two models", "--unlearned"),
    Case(
        "a model's folder for an evaluation",
        command("evaluate", "--original", "a", "--unlearned", "b", "--output_dir", "FILE"),
        "holds a model",
        "another folder",
        a_model(),
    ),
    Case("nothing to compare", command("compare", "--baselines", "none"), "nothing to compare", "--settings"),
    Case("a comparison to push", command("compare", "--push_to_hub"), "nothing can be pushed", "push_to_hub"),
]

CASES = [*WORDS, *FILES, *NEEDED]
