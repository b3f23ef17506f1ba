"""A run of steps that get smaller, watched by held-out proxies and taken back as far as they ask; then the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..parallel.processes import from_first
from ..pipeline.constraint import SoftConstraint
from ..pipeline.layers import Layers
from .held_out import HeldOut, Reading

LOOK = 10  # steps between two readings
BACK = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0)  # shares of the whole way that are tried at the end


class AdaptiveControl(TrainerCallback, ExportableState):
    """Half a cosine of step sizes; at the end the largest share of the way, of ``BACK``, within the proxy budget, and
    then the head. Nothing here reads retained or test data.

    Args:
        budget: nats, by which the held-out proxies may have moved. learning_rate: the optimizer's.
        log: takes a dictionary of numbers.
        finish: fits the head, and gives the forgotten classes' level.
        whole: False to leave the deep layers as they are.

    Attributes:
        curve: one record a reading. level: what ``finish`` gave. way: the share that was kept.
    """

    def __init__(
        self,
        held_out: HeldOut,
        constraint: SoftConstraint,
        layers: Layers,
        budget: float,
        learning_rate: float,
        log: Callable[[dict[str, float]], object],
        finish: Callable[[], float],
        whole: bool = True,
    ):
        self.held_out, self.constraint, self.layers = held_out, constraint, layers
        self.budget, self.learning_rate, self.log, self.finish = budget, learning_rate, log, finish
        self.shares = BACK if whole else (0.0,)
        self.start = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        self.curve: list[dict[str, Any]] = []
        self.level, self.way = 0.0, 1.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside the weights, in the form that Trainer writes."""
        return {"args": {}, "attributes": {"curve": self.curve}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From the original, or from where a checkpoint ended."""
        if state.global_step:  # resumed
            self.curve = state.stateful_callbacks[type(self).__name__]["attributes"]["curve"]
        else:
            self.record(state, "whole", from_first(self.held_out.first))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The length of the step."""
        self.constraint.step_scale = (1 + math.cos(math.pi * state.global_step / args.max_steps)) / 2

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A reading, where one is due."""
        if state.global_step % LOOK == 0:
            self.record(state, "whole", self.read())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Back as far as the proxies ask, and the head."""
        end = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        for share in self.shares:
            self.go(end, share)
            reading, self.way = self.read(), share
            if reading.proxy_kl <= self.budget:  # False for nan
                break
        if self.way < 1 or state.global_step % LOOK:
            self.record(state, "whole", reading)
        self.level = self.finish()
        self.record(state, "head", self.read())

    @torch.no_grad()
    def go(self, end: dict[str, torch.Tensor], share: float) -> None:
        """To a share of the way."""
        for name, layer in self.layers.items():
            layer.weight.copy_(self.start[name].lerp(end[name], share) if share else self.start[name])

    def read(self) -> Reading:
        """Every process sees what the first one read."""
        return from_first(self.held_out.read())

    def record(self, state: TrainerState, phase: str, reading: Reading) -> None:
        """Into the curve, and into the log."""
        rate = self.learning_rate * self.constraint.step_scale
        entry = {"step": state.global_step, "phase": phase, "learning_rate": rate}
        self.curve.append(entry | asdict(reading))
        if state.global_step:
            self.log(asdict(reading))

    def summary(self) -> dict[str, Any]:
        """The outcome of the run, for the report and the terminal."""
        first, end = self.curve[0], self.curve[-1]
        deep = [entry for entry in self.curve if entry["phase"] == "whole"][-1]
        return {
            "learning_rate": self.learning_rate,
            "way": self.way,
            "whole_network_steps": deep["step"] if self.way else 0,
            "forget_probability": [entry["forget_probability"] for entry in (first, deep, end)],
            "whole_proxy_kl": deep["proxy_kl"],
            "proxy_kl": end["proxy_kl"],
            "target_js": end["target_js"],
            "steps": end["step"],
            "unseen_level": self.level,
            "forgotten": end["forget_rate"] == 0,
        }
