"""What a method sees of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerState

from ..config import UnlearningConfig
from ..data.images import ForgetSet, RetainSet
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import Layer
from .plan import Plan

Stage = tuple[dict[str, Tensor], dict[str, Any]]


class Stages(Protocol):
    """Finished stages on disk, to resume from (:class:`zspag_hf.trainer.resume.StageCache`)."""

    first: bool
    folder: Path
    root: Path
    key: dict[str, Any]

    def stage(self, name: str, make: Callable[[], Stage]) -> tuple[dict[str, Tensor], dict[str, Any], float]:
        """Tensors and facts, and the seconds that they took in an earlier process."""

    def store(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write one."""

    def load(self, name: str) -> Stage | None:
        """Read one; None where it is not there."""

    def on_disk(self, name: str, tensors: dict[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """The tensors of one, each read when it is asked for."""

    def last_checkpoint(self, output_dir: str) -> str | None:
        """The last one of this run, or None."""

    def discard(self) -> None:
        """Delete them."""


@dataclass
class Run:
    """One run, as a method sees it.

    Attributes:
        model: the model itself, whose weights the run changes. classifier: the same, from pixels in [0, 1] to logits.
        layers: name -> layer that may be constrained, in the order in which a pass reaches them.
        head: name of the classification head among them, or None.
        forget: the images to forget. retained: retained images, for a method that reads them; else None. public:
            unlabelled images, uint8 ``(N, channels, H, W)``, where a method that reads them was given some; else None.
        class_ids: the model's ids of the classes to forget; empty where images are. forget_ids: those and the classes
            of every earlier request.
        label_names: of the model, by id.
        args: the run's own copy of the options, with what the method decided filled in.
        quiet: whether to show no progress bars.
        stages: finished stages, on disk; there from ``prepare`` on. log: takes a dictionary of numbers.
        state: transformers' state of the training: ``global_step``, ``epoch``. plan: what ``prepare`` gave.
        timings: stage -> seconds.
    """

    model: PreTrainedModel
    classifier: PixelClassifier
    layers: dict[str, Layer]
    head: str | None
    forget: ForgetSet
    retained: RetainSet | None
    class_ids: list[int]
    forget_ids: list[int]
    label_names: list[str]
    args: UnlearningConfig
    quiet: bool
    log: Callable[[dict[str, float]], None]
    stages: Stages = field(init=False)
    state: TrainerState = field(default_factory=TrainerState)
    plan: Plan | None = None
    timings: dict[str, float] = field(default_factory=dict)
    public: Tensor | None = None

    @property
    def kept(self) -> RetainSet:
        """The retained images, for a method that always reads them."""
        assert self.retained is not None, "the trainer refuses to begin without them"
        return self.retained

    @property
    def made(self) -> Plan:
        """The plan, for what runs after ``prepare``."""
        assert self.plan is not None, "prepare comes first"
        return self.plan

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return self.args.seed

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.classifier.device

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to the report's time of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def stage(self, name: str, make: Callable[[], Stage], under: str | None = None) -> Stage:
        """A stage's tensors by name and facts that JSON can hold: from disk on resuming, else made by ``make()``.

        Args:
            under: the stage that its time is counted to in the report, also the time of an earlier process; its own.
        """
        with self.timed(under or name):
            tensors, facts, earlier = self.stages.stage(name, make)
        self.timings[under or name] += earlier
        return tensors, facts


def state_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once, also where modules share it."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
