"""Held-out proxies -> step size, scope and stopping, chosen within one run; :mod:`zspag_hf.adaptive.first_step` begins.

Proxies made from a part of the forget images that training never sees stand in for a validation set: they show
over-unlearning, the held-out forget images show forgetting. No retained data, and no test data, is used anywhere here.

Two observations carry the rules, made on digits and CIFAR-10 (small ViTs), a 1,001-class MobileNet and a face ResNet.
Where the held-out proxies that barely crossed moved by at most 0.01 nats (mean KL divergence over retained classes),
test accuracy on retained classes stayed within half a point of the masked model's on all four; where 0.05 was allowed,
three lost one to five points. And what the deep layers cannot forget within that budget, the forgotten classes' own
rows of the head can: they leave the retained classes' logits untouched (:mod:`zspag_hf.adaptive.head`).
"""

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
from .first_step import ROUND_STEPS
from .held_out import HeldOut, Reading

MAX_REJECTED = 6  # rounds rolled back before the deep layers are left alone
GROWTH = 0.1  # share by which the divergence from the targets may grow in a round
WORTH = 0.25  # share of the divergence from the targets that one more round has to take, once all is forgotten
LEFT = 0.015  # share of the first divergence from the targets that is left to the head's rows
PATIENCE = 10  # rounds without 2 % less divergence from the target
FORGOTTEN = 0.01  # mean probability of the forgotten classes at which a held-out forget set counts as forgotten
CHECKPOINTED = ("rejected", "stalled", "settled", "scale", "ceiling", "best", "curve")


class AdaptiveControl(TrainerCallback, ExportableState):
    """Steers one run: rounds of steps, each kept or rolled back by what the held-out data say.

    Phase "whole": every constrained layer. A round goes too far when it spends more than a fifth of the proxy budget,
    exceeds the budget, leads away from the targets, or is not finite. Then its way is halved, and the step with it;
    what still goes too far is rolled back, and half of that step is not exceeded again. The step is doubled after a
    round that spends under a fiftieth and takes less than half of the divergence from the targets. Once forgotten, a
    round is kept only where it gains as many nats towards the targets as it moves the proxies. Ends once the held-out
    forget images are forgotten and a round takes less than ``WORTH`` of the divergence from their targets, leaves less
    than ``LEFT`` of the first one, or is rolled back; after ``MAX_REJECTED`` rollbacks, or ``PATIENCE`` rounds without
    progress. Within a round steps get smaller evenly, from almost twice its rate to almost nothing, so that what is
    read at its end is no matter of the last few batches.
    Phase "head": the head's rows of the forgotten classes are fitted (:func:`zspag_hf.adaptive.head.fit_unseen_rows`).

    Checkpoints are put off to the end of a round, when the weights are those that were kept last.

    Args:
        budget: nats, by which the held-out proxies may move. learning_rate: the optimizer's, of the first round.
        log: takes a dictionary of numbers.
        finish: fits the rows and gives their level; None where only the whole network is to move (scope "all").
        whole: False to leave the deep layers as they are (scope "head").

    Attributes:
        curve: one record a round: what was read, at which step size, and whether it was kept.
    """

    kept: Reading  # of the weights as they were kept last; there from the training's begin on

    def __init__(
        self,
        held_out: HeldOut,
        constraint: SoftConstraint,
        layers: Layers,
        budget: float,
        learning_rate: float,
        log: Callable[[dict[str, float]], object],
        finish: Callable[[], float] | None = None,
        whole: bool = True,
    ):
        self.held_out, self.constraint, self.layers = held_out, constraint, layers
        self.budget, self.learning_rate, self.log = budget, learning_rate, log
        self.finish, self.whole = finish, whole
        self.curve: list[dict[str, Any]] = []
        self.rejected = self.stalled = self.since = 0
        self.settled, self.scale, self.ceiling = False, 1.0, math.inf
        self.phase = "whole"
        self.level: float | None = None
        self.best, self.save_due = math.inf, False

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside the weights, in the form that Trainer writes."""
        if not self.curve:
            return {"args": {}, "attributes": {}}
        attributes = {name: getattr(self, name) for name in CHECKPOINTED}
        return {"args": {}, "attributes": attributes | {"kept": asdict(self.kept)}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From the original, or from where a checkpoint ended."""
        if state.global_step:  # resumed
            saved = state.stateful_callbacks[type(self).__name__]["attributes"]
            for name in CHECKPOINTED:
                setattr(self, name, saved[name])
            self.kept = Reading(**saved["kept"])
        else:
            self.kept = from_first(self.held_out.first)
            self.best = self.kept.target_js
            self.record(state, self.kept, True)
        self.snapshot()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The length of the step."""
        self.constraint.step_scale = self.scale * (2 - (2 * self.since + 1) / ROUND_STEPS)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The round's end, where it is one."""
        self.since += 1
        if not self.whole:
            self.go_back()
            self.end(state, control)
        elif self.since >= ROUND_STEPS or state.global_step >= args.max_steps:
            self.close_round(args, state, control)
        self.put_off_checkpoint(control)

    def on_epoch_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        """A checkpoint that falls due waits here too."""
        self.put_off_checkpoint(control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Whoever stopped the training: a begun round is judged, and the head's rows are fitted."""
        if self.since:
            self.close_round(args, state, control)
        if self.phase == "whole":
            self.end(state, control)

    def put_off_checkpoint(self, control: TrainerControl) -> None:
        """Have a checkpoint wait for the end of the round."""
        wanted = control.should_save or self.save_due
        control.should_save = wanted and not self.since and not control.should_training_stop
        self.save_due = wanted and not control.should_save

    def close_round(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Keep the round or roll it back, and decide what comes next."""
        self.since = 0
        reading, keep = self.judge(state)
        if not keep:  # the way is a sum of damped updates, so half of it is as protected, and costs about a quarter
            self.scale /= 2
            self.go_back(half=True)
            reading, keep = self.judge(state)
        if keep:
            self.accept(reading)
        else:
            self.go_back()
            self.rejected, self.settled = self.rejected + 1, self.is_forgotten()
            self.ceiling, self.scale = self.scale, self.scale / 2
        stopped = self.settled or self.rejected >= MAX_REJECTED or self.stalled >= PATIENCE
        if stopped or state.global_step >= args.max_steps:
            self.end(state, control)

    def end(self, state: TrainerState, control: TrainerControl) -> None:
        """Fit the head's rows, read once more, and stop."""
        self.since = 0
        control.should_training_stop = True
        if self.finish is not None:
            self.phase = "head"
            self.level = self.finish()
            self.kept = self.read()
            self.record(state, self.kept, True)

    def judge(self, state: TrainerState) -> tuple[Reading, bool]:
        """What the held-out data say of the weights as they are, and whether that is good enough."""
        now = self.read()
        spent = now.proxy_kl - self.kept.proxy_kl
        if self.is_forgotten():  # from here on a round has to pay: nats towards the targets for nats of the proxies
            forward = now.target_js + now.proxy_kl <= self.kept.target_js + self.kept.proxy_kl
        else:
            forward = now.target_js <= (1 + GROWTH) * self.kept.target_js  # False for nan
        keep = forward and now.proxy_kl <= self.budget and spent <= self.budget / 5
        self.record(state, now, keep)
        return now, keep

    def accept(self, now: Reading) -> None:
        """Keep the round, and see whether another one is worth it, and at which step."""
        spent = now.proxy_kl - self.kept.proxy_kl
        if spent < self.budget / 50 and now.target_js > self.kept.target_js / 2:
            self.scale = min(2 * self.scale, self.ceiling)
        slow = now.target_js > (1 - WORTH) * self.kept.target_js
        self.stalled = 0 if now.target_js < 0.98 * self.best else self.stalled + 1
        self.best = min(self.best, now.target_js)
        self.kept = now
        near = now.target_js <= LEFT * self.curve[0]["target_js"]
        self.settled = (slow or near) and self.is_forgotten()
        self.snapshot()

    def is_forgotten(self) -> bool:
        """Whether no held-out forget image is given a forgotten class any more, and none is probable."""
        # once fitted, twice the level of every forgotten class is as little as can be asked for
        unseen = 2 * self.level * len(self.held_out.forget_ids) if self.level else 0.0
        return self.kept.forget_rate == 0 and self.kept.forget_probability < max(FORGOTTEN, unseen)

    def read(self) -> Reading:
        """Every process decides by what the first one read."""
        return from_first(self.held_out.read())

    def record(self, state: TrainerState, reading: Reading, kept: bool) -> None:
        """Into the curve, and into the log."""
        rate = self.learning_rate * self.scale
        entry = {"step": state.global_step, "phase": self.phase, "learning_rate": rate, "kept": kept}
        self.curve.append(entry | asdict(reading))
        if state.global_step:
            self.log({"round_learning_rate": rate, **asdict(reading)})

    def snapshot(self) -> None:
        """Remember the weights."""
        self.weights = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}

    @torch.no_grad()
    def go_back(self, half: bool = False) -> None:
        """To the last snapshot, or half of the way to it."""
        for name, weight in self.weights.items():
            now = self.layers[name].weight
            now.lerp_(weight, 0.5) if half else now.copy_(weight)

    def summary(self) -> dict[str, Any]:
        """The choices of the run, for the report and the terminal."""
        whole = [r for r in self.curve if r["phase"] == "whole" and r["kept"]]
        first, last, end = self.curve[0], whole[-1] if whole else self.curve[0], self.kept
        return {
            "learning_rate": self.learning_rate,
            "whole_network_steps": last["step"],
            "forget_probability": [first["forget_probability"], last["forget_probability"], end.forget_probability],
            "proxy_kl": end.proxy_kl,
            "target_js": end.target_js,
            "steps": self.curve[-1]["step"],
            "unseen_level": self.level,
            "forgotten": self.is_forgotten(),
        }
