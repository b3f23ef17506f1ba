"""What the commands share: options of a run, several processes, quiet terminals, and what is printed at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, make_dataclass
from typing import Any, get_type_hints

import datasets
import torch
import transformers
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ..config import UnlearningConfig, check_fields, option
from ..errors import UnlearningError, check_choice
from ..methods import METHODS
from ..report.report import PAGE_NAME, UnlearningReport, finite
from ..trainer.publishing import public_report
from ..trainer.refusals import check_launch
from .jobs import ALL, BASELINES, FEW, Setting

BY_SIGNAL = 128  # a shell's exit status of a process that a signal ended, plus the signal


@dataclass
class MethodArguments:
    """Which method runs, and which other settings beside it."""

    method: str = option("zspag", "package.module:Class of your own, or one", choices=METHODS, private=True)
    baselines: str = option(
        "none", f"Run beside it ({'; '.join(FEW)}; or all {len(ALL)} there are)", group="evaluation", choices=BASELINES
    )

    def __post_init__(self):
        check_choice("baselines", self.baselines, BASELINES)

    def rows(self) -> dict[str, Setting]:
        """Rows of a comparison."""
        return {name: Setting(method) for name, method in BASELINES[self.baselines].items()}


@dataclass
class JsonArguments:
    """What is printed."""

    json: bool = option(False, "One JSON document on stdout, everything else on stderr.", group="running")


@dataclass
class CommandArguments(JsonArguments):
    """How a command runs."""

    num_processes: int | None = option(
        None,
        "Start so many processes, one a GPU, or on the CPU where there is none.",
        group="running",
        least=1,
        whole=True,
    )

    def __post_init__(self):
        check_fields(self)
        running = os.environ.get("WORLD_SIZE")
        if running is not None and self.num_processes not in (None, int(running)):
            raise UnlearningError(
                f"num_processes={self.num_processes} in a launch of {running}: leave it to one of the two."
            )

    def must_launch(self) -> bool:
        """Whether this process is to start others in its place."""
        return (self.num_processes or 1) > 1 and "WORLD_SIZE" not in os.environ


def options_like(*names: str) -> type:
    """A dataclass of some of the options of :class:`UnlearningConfig`, with their types, defaults and help."""
    hints, own = get_type_hints(UnlearningConfig), UnlearningConfig.__dataclass_fields__
    return make_dataclass(
        "Options", [(n, hints[n], field(default=own[n].default, metadata=own[n].metadata)) for n in names]
    )


def check_no_model(folder: str) -> None:
    """Refuse to write a report over that of a model.

    Raises:
        UnlearningError: the folder holds one.
    """
    if os.path.exists(os.path.join(folder, "config.json")):
        raise UnlearningError(f"output_dir {folder!r} holds a model, whose report would be lost: give another folder.")


def launch(name: str, argv: list[str], count: int, use_cpu: bool) -> int:
    """Run a command in several processes by ``accelerate launch``; returns the exit status of the first that failed.

    Raises:
        UnlearningError: more processes than GPUs.
    """
    gpus = 0 if use_cpu else torch.cuda.device_count()
    if 0 < gpus < count:
        raise UnlearningError(f"num_processes={count} is more than the {gpus} GPUs here: give {gpus}, or use_cpu=true.")
    # On CPU --cpu starts one process; this starts several, and the script has to say that it means the CPU.
    options = ["--multi_gpu", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "zspag_hf.cli", name, *argv]
    options += [] if gpus else ["--use_cpu", "true"]
    logging.disable(logging.CRITICAL)  # the launcher's own accounts of a failure: the process has told it already
    try:
        launch_command(launch_command_parser().parse_args(options))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return BY_SIGNAL - code if code < 0 else code
    except SignalException as error:
        return BY_SIGNAL + error.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0


def prepare(config: UnlearningConfig) -> None:
    """Check the launch, and show progress as the options ask.

    Raises:
        UnlearningError: fewer processes run than were asked for.
    """
    check_launch(config.distributed_state)
    if config.disable_tqdm or not config.distributed_state.is_main_process:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


@contextlib.contextmanager
def document(wanted: bool) -> Iterator[dict]:
    """A dictionary, printed as JSON at the end where ``wanted``; whatever else is printed then goes to stderr."""
    held: dict[str, Any] = {}
    if not wanted:
        yield held
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield held
    if held:  # empty in all processes but the first
        print(json.dumps(finite(held), indent=1, allow_nan=False))


def show(report: UnlearningReport, folder: str, what: str = "model, processor and report") -> None:
    """The report's table, what was forgotten, the summary, and where it all is."""
    classes = ", ".join(c["label"] for c in report.forget_classes)
    gone = f"{classes} ({report.forget_images} images)" if classes else f"{report.forget_images} images"
    print(f"\n{report.table()}")
    print(f"\nforgotten: {gone}\n\n{report.summary()}\n")
    print(f"{what}: {folder}")


def as_document(report: UnlearningReport, folder: str | None) -> dict:
    """The report for a program, without points and maps that stand for single images; ``folder`` is where it lies."""
    return {"output_dir": folder, "report": asdict(public_report(report))}


def page_hint(folder: str) -> str:
    """Where the page lies."""
    return f"read:    {os.path.join(folder, PAGE_NAME)}"
