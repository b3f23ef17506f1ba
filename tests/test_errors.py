"""Every error of the library, met once: one line that names the value and the mend, before any work, nothing written.

The tables are in ``errors_*.py``, a row each. A new ``raise UnlearningError`` without a row fails the last tests.
"""

from __future__ import annotations

import ast
import inspect
import re
import socket
import traceback
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path

import errors_architectures
import errors_commands
import errors_data
import errors_models
import errors_options
import errors_results
import errors_runs
import pytest
import transformers
from datasets import Dataset
from errors_case import SHARED, TOKEN, Case
from tiny import tiny_processor

import zspag_hf
from zspag_hf import METHODS, UnlearningConfig, UnlearningError, UnlearningTrainer, evaluate_unlearning
from zspag_hf.cli.compare import CompareArguments
from zspag_hf.cli.jobs import DataArguments
from zspag_hf.cli.running import CommandArguments
from zspag_hf.evaluation import comparison
from zspag_hf.pipeline.attacks import Attack
from zspag_hf.trainer.output_dir import LOCK_NAME
from zspag_hf.trainer.publishing import push_folder

LIBRARY = Path(zspag_hf.__file__).parent
TESTS = Path(__file__).parent
TABLES = {  # how many rows each has: one that is lost is missed
    errors_options: 108,
    errors_models: 44,
    errors_data: 89,
    errors_runs: 63,
    errors_results: 53,
    errors_commands: 34,
    errors_architectures: 10,
}
CASES = {f"{table.__name__}: {case.name}": case for table in TABLES for case in table.CASES}
FAST = [name for name in CASES if name.startswith("errors_options")]

# (file, function) -> why no row can meet it, and the test that does.
EXCEPT = {
    ("pipeline/grams.py", "finite"): ("needs a model that is finite in its outputs alone", "test_grams.py"),
    ("trainer/stage_cache.py", "open"): ("needs a run before it, or a full disk", "test_stage_cache.py"),
    ("trainer/stage_cache.py", "write"): ("needs a full disk", "test_stage_cache.py"),
    ("trainer/publishing.py", "check_private"): ("needs a Hub that holds the repository", "test_publish.py"),
    ("trainer/publishing.py", "check_same_model"): ("needs a Hub that holds the repository", "test_publish.py"),
    ("methods/mixunlearn.py", "on_train_begin"): ("needs a run before it", "test_mixunlearn.py"),
    ("hub/datasets.py", "check_commit"): ("needs a Hub that fails between two answers", "test_hub_loading.py"),
}


class Outcome:
    """What a bad input came to: the error, and the files of its folder before and after."""

    def __init__(self, error: BaseException | None, before: dict, after: dict):
        self.error, self.before, self.after = error, before, after

    @property
    def site(self) -> tuple[str, int] | None:
        """File and line in the library that raised."""
        frames = traceback.extract_tb(self.error.__traceback__) if self.error else []
        own = [frame for frame in frames if LIBRARY in Path(frame.filename).parents]
        return (Path(own[-1].filename).relative_to(LIBRARY).as_posix(), own[-1].lineno) if own else None


def files(folder: Path) -> dict[str, bytes]:
    """All but the empty file that a run keeps others out by."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def never(what: str):
    def refuse(*_, **__):
        raise AssertionError(f"{what} before the input was refused")

    return refuse


@pytest.fixture(scope="session")
def outcome_of(tmp_path_factory):
    """Feeds a bad input once, and tells what it came to."""

    @cache
    def feed(case: Case) -> Outcome:
        folder = tmp_path_factory.mktemp("bad")
        start = case.given(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_TOKEN", TOKEN)
            patch.setattr(socket.socket, "connect", never("the network was asked"))
            if not case.works:
                patch.setattr(Attack, "__call__", never("an attack ran"))
                patch.setattr(transformers.Trainer, "training_step", never("a step was trained"))
                patch.setattr(comparison, "gather_table", never("a score was computed"))
            before = files(folder)
            try:
                case.feed(start)
            except Exception as error:  # whatever it is: the test tells
                return Outcome(error, before, files(folder))
            return Outcome(None, before, files(folder))

    return feed


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_bad_input_is_told_in_one_line_and_changes_nothing(name, outcome_of, tmp_path_factory):
    """It names the value and the mend, and options that exist; no token, and no place that was not given."""
    case = CASES[name]
    outcome = outcome_of(case)
    assert type(outcome.error) is UnlearningError, "".join(traceback.format_exception(outcome.error))
    message = str(outcome.error)
    assert "\n" not in message
    assert case.value in message and case.mend in message, message
    assert TOKEN not in message and " at 0x" not in message
    own = (str(tmp_path_factory.getbasetemp()), str(SHARED))
    places = re.findall(r"(?<![\w:/.<])/[\w.-]+/[\w./-]*", message)
    assert all(place.startswith(own) for place in places), message
    unquoted = re.sub(r"(?<!\w)'[^']*'", "", message)
    named = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b(?!\.)", unquoted))
    assert named <= known_names(), named - known_names()
    assert outcome.after == outcome.before, "something was written"


@cache
def known_names() -> set[str]:
    """Options, arguments and columns of the library, and what its messages name of other libraries."""
    calls = [evaluate_unlearning, UnlearningTrainer, UnlearningTrainer.train, push_folder, transformers.Trainer]
    arguments = {name for call in calls for name in inspect.signature(call).parameters}
    kinds = (UnlearningConfig, DataArguments, CommandArguments, CompareArguments, *METHODS.values())
    options = {field.name for kind in kinds for field in fields(kind)}
    methods = {name for kind in (UnlearningTrainer, Dataset, transformers.PreTrainedModel) for name in dir(kind)}
    of_others = {"merge_and_unload", "multi_gpu", "num_labels", "reset_parameters", "use_fsdp"}
    of_others |= {*tiny_processor().to_dict()}
    return arguments | options | methods | of_others | {*dir(zspag_hf)}


# ---------------------------------------------------------------------- completeness


@cache
def raising() -> list[tuple[str, str, int, int]]:
    """File, function, first and last line of every statement that raises an UnlearningError or a kind of it, made there
    or returned by a function that says so."""
    trees = {path.relative_to(LIBRARY).as_posix(): ast.parse(path.read_text()) for path in LIBRARY.rglob("*.py")}
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    functions = [(name, node) for name, node in nodes if isinstance(node, ast.FunctionDef)]
    makers = {f.name for _, f in functions if getattr(f.returns, "id", None) == "UnlearningError"} | {"UnlearningError"}
    makers |= {
        c.name
        for _, c in nodes
        if isinstance(c, ast.ClassDef) and {b.id for b in c.bases if isinstance(b, ast.Name)} & makers
    }
    sites = set()
    for name, function in functions:
        raised = (node for node in ast.walk(function) if isinstance(node, ast.Raise))
        own = [node for node in raised if getattr(getattr(node.exc, "func", None), "id", None) in makers]
        sites |= {(name, function.name, node.lineno, node.end_lineno) for node in own}
    return sorted(sites)


@pytest.mark.slow
def test_every_error_has_a_row(outcome_of):
    met = {outcome_of(case).site for case in CASES.values()}
    unmet = [
        f"{name}:{first} in {function}"
        for name, function, first, last in raising()
        if (name, function) not in EXCEPT and not any((name, line) in met for line in range(first, last + 1))
    ]
    assert not unmet, "no row meets " + ", ".join(unmet)


def test_every_exception_is_needed_and_covered_elsewhere():
    known = {(name, function) for name, function, *_ in raising()}
    for place, (reason, test) in EXCEPT.items():
        assert place in known and reason and (TESTS / test).is_file(), place


def test_no_row_is_lost_and_no_two_have_one_name():
    assert {table.__name__: len(table.CASES) for table in TABLES} == {t.__name__: n for t, n in TABLES.items()}
    names = Counter(f"{table.__name__}: {case.name}" for table in TABLES for case in table.CASES)
    assert [name for name, count in names.items() if count > 1] == []
    assert len(raising()) > 100, "the search for them finds them"
