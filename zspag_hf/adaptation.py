"""Held-out proxies -> step size, damping, scope and stopping, chosen within one run.

Proxies made from a part of the forget images that training never sees stand in for a validation set: they show
over-unlearning, the held-out forget images show forgetting. No retained data, and no test data, is used anywhere here.

Two observations carry the rules, made on four settings (digits and CIFAR-10 on small ViTs, a 1,001-class MobileNet, a
face ResNet). Where the held-out proxies that barely crossed moved by at most 0.01 nats (mean KL divergence over
retained classes), test accuracy on retained classes stayed within half a point of the masked model's on all four;
where 0.05 was allowed, three of them lost one to five points. And what the deep layers cannot forget within that
budget, the forgotten classes' own rows of the head can: they leave the retained classes' logits untouched
(:mod:`zspag_hf.head`).
"""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .classifier import GRADIENT_BATCH, PixelClassifier, to_unit
from .constraint import SoftConstraint, damped
from .errors import UnlearningError
from .held_out import HeldOut, Reading
from .layers import Layer
from .processes import from_first, my_batches, summed
from .subspaces import Spectrum

ROUND_STEPS = 10  # optimizer steps between two looks at the held-out data
MAX_REJECTED = 6  # rounds rolled back before the deep layers are left alone
SLACK = 0.1  # what counts as no difference, of gains and of divergences from the targets
PATIENCE = 10  # rounds without 2 % less divergence from the target
PROBE_IMAGES = 256  # forget images that the first step is chosen on
THRESHOLDS = (0.9, 0.99, 0.999, 0.9999)
CHECKPOINTED = ("rejected", "stalled", "settled", "ceiling", "best", "curve")
FORGOTTEN = 0.01  # mean probability of the forgotten classes at which a held-out forget set counts as forgotten


def forget_gradient(
    classifier: PixelClassifier,
    pixels: Tensor,
    targets: Tensor,
    layers: dict[str, Layer],
    batch_size: int = GRADIENT_BATCH,
) -> dict[str, Tensor]:
    """Gradient of the mean soft cross-entropy on forget images, by layer, in matrix form ``(groups, out, d_in)``."""
    weights = [layer.weight for layer in layers.values()]
    total = [torch.zeros_like(w) for w in weights]
    for rows in my_batches(len(pixels), batch_size):
        with torch.enable_grad():
            logits = classifier(to_unit(pixels[rows], classifier.device))
            loss = F.cross_entropy(logits, targets[rows].to(logits.device), reduction="sum") / len(pixels)
            grads = torch.autograd.grad(loss, weights, allow_unused=True)  # None: does not reach the logits
        for sum_, grad in zip(total, grads, strict=True):
            if grad is not None:
                sum_ += grad
    return {name: layer.matrix(summed(g)) for (name, layer), g in zip(layers.items(), total, strict=True)}


def choose_damping(
    held_out: HeldOut,
    spectrum: Spectrum,
    layers: dict[str, Layer],
    pixels: Tensor,
    targets: Tensor,
    budget: float,
    thresholds=THRESHOLDS,
) -> tuple[float, float, list[dict]]:
    """Energy threshold and learning rate for the first steps, from one full-batch direction per threshold.

    Along -g (I + G/mu)^-1 a step is sought that moves the held-out proxies by a fiftieth of the budget. Their
    divergence grows with the square of the step, so a few evaluations find it. The threshold that has then lowered the
    forget loss most per root of that divergence is taken, the most protective one where several are within a tenth of
    the best, and a round's share of that step.

    Returns:
        threshold, learning rate, and the probe: one record a threshold.
    """
    classifier, allowed = held_out.classifier, budget / 50
    pixels, targets = pixels[:PROBE_IMAGES], targets[:PROBE_IMAGES]
    gradient = forget_gradient(classifier, pixels, targets, layers)
    start = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    records: list[dict] = []
    loss = soft_loss(classifier, pixels, targets)
    try:
        for threshold in thresholds:
            dampings = spectrum.dampings(threshold)
            direction = {name: damped(layers[name], g, dampings[name]) for name, g in gradient.items()}
            record = probe_step(held_out, layers, start, gradient, direction, pixels, targets, loss, allowed)
            records.append({"energy_threshold": threshold} | record)
    finally:
        move(layers, start, None, 0.0)
    finite = [record for record in records if math.isfinite(record["gain"])]
    if not finite:
        raise UnlearningError(
            f"no finite first step was found at energy_threshold {', '.join(map(str, thresholds))}: the model's"
            " gradients on the forget images are not finite. Check its weights, or give adaptive=False with a"
            " learning_rate."
        )
    best = max(record["gain"] for record in finite)
    chosen = [record for record in finite if record["gain"] >= best - SLACK * abs(best)][-1]
    return chosen["energy_threshold"], chosen["step"] / ROUND_STEPS, records


def probe_step(held_out, layers, start, gradient, direction, pixels, targets, loss: float, allowed: float) -> dict:
    """The step along one direction that moves the held-out proxies by ``allowed`` nats; leaves the weights moved."""
    slope = float(sum((direction[name] * g).sum() for name, g in gradient.items()))
    step = (loss + float(torch.xlogy(targets, targets).sum(1).mean())) / max(slope, 1e-12)  # Polyak's step
    for attempt in range(8):
        move(layers, start, direction, -step)
        kl = held_out.proxy_kl()
        if 0.5 * allowed <= kl <= allowed or attempt == 7:
            break
        step *= min(max((0.75 * allowed / max(kl, 1e-12)) ** 0.5, 1e-2), 1e2) if math.isfinite(kl) else 1e-2
    drop = loss - soft_loss(held_out.classifier, pixels, targets)
    gain = drop / max(kl, 1e-12) ** 0.5 if math.isfinite(kl) and math.isfinite(drop) else -math.inf
    return {"step": step, "proxy_kl": kl, "forget_loss_drop": drop, "gain": gain}


@torch.no_grad()
def move(layers: dict[str, Layer], start: dict[str, Tensor], direction: dict[str, Tensor] | None, step: float) -> None:
    """Weights = start + step x direction; direction None restores the start exactly."""
    for name, layer in layers.items():
        layer.weight.copy_(start[name])
        if direction is not None:
            layer.matrix(layer.weight).add_(direction[name], alpha=step)


def soft_loss(classifier: PixelClassifier, pixels: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(classifier.predict_shared(pixels), targets))


class AdaptiveControl(TrainerCallback, ExportableState):
    """Steers one run: rounds of steps, each kept or rolled back by what the held-out data say.

    Phase "whole": every constrained layer. A round is rolled back, and the step divided by 4, when it spends more than
    a fifth of the proxy budget, exceeds the budget, leads away from the targets, or is not finite; the step is doubled
    after a round that spends under a fiftieth. A step size that was rolled back is not tried again. Once forgotten, a
    round is kept only where it gains as many nats towards the targets as it moves the proxies. Ends once the
    held-out forget images are forgotten and the divergence from their targets has stopped falling, after
    ``MAX_REJECTED`` rollbacks, or ``PATIENCE`` rounds without progress.
    Phase "head": the head's rows of the forgotten classes are fitted (:func:`zspag_hf.head.fit_unseen_rows`).

    Checkpoints are put off to the end of a round, when the weights are those that were kept last.

    Args:
        finish: fits the rows; None where only the whole network is to move (scope "all").
        whole: False to leave the deep layers as they are (scope "head").

    Attributes:
        curve: one record a round: what was read, at which step size, and whether it was kept.
    """

    def __init__(
        self,
        held_out: HeldOut,
        constraint: SoftConstraint,
        layers: dict[str, Layer],
        budget: float,
        learning_rate: float,
        log,
        finish=None,
        whole: bool = True,
    ):
        self.held_out, self.constraint, self.layers = held_out, constraint, layers
        self.budget, self.learning_rate, self.log = budget, learning_rate, log
        self.finish, self.whole = finish, whole
        self.curve: list[dict] = []
        self.rejected = self.stalled = self.since = 0
        self.settled, self.ceiling = False, math.inf
        self.phase, self.level = "whole", None
        self.kept: Reading | None = None
        self.best, self.save_due = math.inf, False

    def state(self) -> dict:
        """What a checkpoint has to hold beside the weights, in the form that Trainer writes."""
        if self.kept is None:
            return {"args": {}, "attributes": {}}
        attributes = {name: getattr(self, name) for name in CHECKPOINTED}
        return {"args": {}, "attributes": attributes | {"kept": asdict(self.kept), "scale": self.constraint.step_scale}}

    def on_train_begin(self, args, state, control, **_):
        if state.global_step:  # resumed
            saved = state.stateful_callbacks[type(self).__name__]["attributes"]
            for name in CHECKPOINTED:
                setattr(self, name, saved[name])
            self.kept, self.constraint.step_scale = Reading(**saved["kept"]), saved["scale"]
        else:
            self.kept = from_first(self.held_out.first)
            self.best = self.kept.target_js
            self.record(state, self.kept, True)
        self.snapshot()

    def on_step_end(self, args, state, control, **_):
        self.since += 1
        if not self.whole:
            self.restore()
            self.end(state, control)
        elif self.since >= ROUND_STEPS or state.global_step >= args.max_steps:
            self.close_round(args, state, control)
        self.put_off_checkpoint(control)

    def on_epoch_end(self, args, state, control, **_):
        self.put_off_checkpoint(control)

    def put_off_checkpoint(self, control) -> None:
        wanted = control.should_save or self.save_due
        control.should_save = wanted and not self.since and not control.should_training_stop
        self.save_due = wanted and not control.should_save

    def on_train_end(self, args, state, control, **_):
        if self.since:  # stopped by somebody else within a round: that round is judged too
            self.close_round(args, state, control)
        if self.phase == "whole":
            self.end(state, control)

    def close_round(self, args, state, control) -> None:
        """Keep the round or roll it back, and decide what comes next."""
        self.since = 0
        reading = self.read()
        keep = self.keeps(reading)
        self.record(state, reading, keep)
        if keep:
            self.accept(reading)
        else:
            self.rejected += 1
            self.restore()
            self.ceiling = self.constraint.step_scale / 2
            self.constraint.step_scale /= 4
        if self.is_done() or state.global_step >= args.max_steps:
            self.end(state, control)

    def end(self, state, control) -> None:
        """Fit the head's rows, read once more, and stop."""
        self.since = 0
        control.should_training_stop = True
        if self.finish is not None:
            self.phase = "head"
            self.level = self.finish()
            self.kept = self.read()
            self.record(state, self.kept, True)

    def keeps(self, now: Reading) -> bool:
        spent = now.proxy_kl - self.kept.proxy_kl
        if self.is_forgotten():  # from here on a round has to pay: nats towards the targets for nats of the proxies
            forward = now.target_js + now.proxy_kl <= self.kept.target_js + self.kept.proxy_kl
        else:
            forward = now.target_js <= (1 + SLACK) * self.kept.target_js  # False for nan
        return forward and now.proxy_kl <= self.budget and spent <= self.budget / 5

    def accept(self, now: Reading) -> None:
        spent = now.proxy_kl - self.kept.proxy_kl
        if spent < self.budget / 50:
            self.constraint.step_scale = min(2 * self.constraint.step_scale, self.ceiling)
        slow = now.target_js > (1 - SLACK) * self.kept.target_js
        self.stalled = 0 if now.target_js < 0.98 * self.best else self.stalled + 1
        self.best = min(self.best, now.target_js)
        self.kept = now
        self.settled = slow and self.is_forgotten()
        self.snapshot()

    def is_done(self) -> bool:
        return self.settled or self.rejected >= MAX_REJECTED or self.stalled >= PATIENCE

    def is_forgotten(self) -> bool:
        # once fitted, twice the level of every forgotten class is as little as can be asked for
        unseen = 2 * self.level * len(self.held_out.forget_ids) if self.level else 0.0
        return self.kept.forget_rate == 0 and self.kept.forget_probability < max(FORGOTTEN, unseen)

    def read(self) -> Reading:
        """Every process decides by what the first one read."""
        return from_first(self.held_out.read())

    def record(self, state, reading: Reading, kept: bool) -> None:
        rate = self.learning_rate * self.constraint.step_scale
        entry = {"step": state.global_step, "phase": self.phase, "learning_rate": rate, "kept": kept, **asdict(reading)}
        self.curve.append(entry)
        if state.global_step:
            logged = {k: v for k, v in entry.items() if k not in ("step", "phase", "kept", "learning_rate")}
            self.log({"round_learning_rate": rate, **logged})

    def snapshot(self) -> None:
        self.weights = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}

    @torch.no_grad()
    def restore(self) -> None:
        for name, weight in self.weights.items():
            self.layers[name].weight.copy_(weight)

    def summary(self) -> dict:
        """The choices of the run, for the report and the terminal."""
        whole = [r for r in self.curve if r["phase"] == "whole" and r["kept"]]
        first, last, end = self.curve[0], whole[-1] if whole else self.curve[0], self.kept
        return {
            "learning_rate": self.learning_rate,
            "whole_network_steps": last["step"],
            "forget_probability": [first["forget_probability"], last["forget_probability"], end.forget_probability],
            "proxy_kl": end.proxy_kl,
            "steps": self.curve[-1]["step"],
            "unseen_level": self.level,
            "forgotten": self.is_forgotten(),
        }
