"""Damping and size of the first steps, from one full-batch direction per energy threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnlearningError
from ..pipeline.classifier import PixelClassifier
from ..pipeline.constraint import damped
from ..pipeline.gradients import layer_gradients
from ..pipeline.layers import Layers
from ..pipeline.subspaces import Spectrum
from .held_out import HeldOut

ROUND_STEPS = 10  # optimizer steps between two looks at the held-out data
PROBE_IMAGES = 256  # forget images that the first step is chosen on
SLACK = 0.1  # of the best gain: thresholds that count as no worse
THRESHOLDS = (0.9, 0.99, 0.999, 0.9999)

Matrices = dict[str, Tensor]  # layer name -> (groups, out, d_in)


def choose_damping(
    held_out: HeldOut,
    spectrum: Spectrum,
    layers: Layers,
    pixels: Tensor,
    targets: Tensor,
    budget: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[float, float, list[dict[str, Any]]]:
    """Energy threshold and learning rate for the first steps, from one full-batch direction per threshold.

    Along -g (I + G/mu)^-1 a step is sought that moves the held-out proxies by a fiftieth of the budget. Their
    divergence grows with the square of the step, so a few evaluations find it. The threshold that has then lowered the
    forget loss most per root of that divergence is taken, the most protective one where several are within a tenth of
    the best, and a round's share of that step.

    Args:
        pixels: ``(N, channels, H, W)`` forget images to train on. targets: ``(N, C)`` their target distributions.
        budget: nats.

    Returns:
        threshold, learning rate, and the probe: one record a threshold.

    Raises:
        UnlearningError: no step is finite.
    """
    classifier, pixels, targets = held_out.classifier, pixels[:PROBE_IMAGES], targets[:PROBE_IMAGES]
    gradients = layer_gradients(classifier, pixels, targets, layers)
    gradient = {name: layers[name].matrix(g) for name, g in gradients.items()}
    start = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    records: list[dict[str, Any]] = []
    loss = soft_loss(classifier, pixels, targets)
    entropy = -float(torch.xlogy(targets, targets).sum(1).mean())  # the least loss that there is
    try:
        for threshold in thresholds:
            direction = spectrum.each_damped(threshold, lambda name, by: damped(layers[name], gradient[name], by))
            slope = float(sum((direction[name] * g).sum() for name, g in gradient.items()))

            def proxy_kl(step: float, direction: Matrices = direction) -> float:
                move(layers, start, direction, -step)
                return held_out.proxy_kl()

            step, kl = sized_step(proxy_kl, (loss - entropy) / max(slope, 1e-12), budget / 50)  # from Polyak's step
            drop = loss - soft_loss(classifier, pixels, targets)
            gain = drop / max(kl, 1e-12) ** 0.5 if math.isfinite(kl) and math.isfinite(drop) else -math.inf
            record = {"step": step, "proxy_kl": kl, "forget_loss_drop": drop, "gain": gain}
            records.append({"energy_threshold": threshold} | record)
            del direction, proxy_kl  # as large as the model, and the next one is made before the name is free
    finally:
        move(layers, start, None, 0.0)
    finite = [record for record in records if math.isfinite(record["gain"])]
    if not finite:
        raise UnlearningError(
            f"no finite first step was found at energy_threshold {', '.join(map(str, thresholds))}: the model's"
            " gradients on the forget images are not finite. Check its weights, or give"
            " method='zspag_paper' with a learning_rate."
        )
    best = max(record["gain"] for record in finite)
    chosen = [record for record in finite if record["gain"] >= best - SLACK * abs(best)][-1]
    return chosen["energy_threshold"], chosen["step"] / ROUND_STEPS, records


def sized_step(proxy_kl: Callable[[float], float], step: float, allowed: float) -> tuple[float, float]:
    """A step after which the proxies have moved by half of ``allowed`` nats to all of them, or the eighth tried; and by
    how many they have."""
    for attempt in range(8):
        kl = proxy_kl(step)
        if 0.5 * allowed <= kl <= allowed or attempt == 7:
            break
        step *= min(max((0.75 * allowed / max(kl, 1e-12)) ** 0.5, 1e-2), 1e2) if math.isfinite(kl) else 1e-2
    return step, kl


@torch.no_grad()
def move(layers: Layers, start: dict[str, Tensor], direction: Matrices | None, step: float) -> None:
    """Weights = start + step x direction; direction None restores the start exactly."""
    for name, layer in layers.items():
        layer.weight.copy_(start[name])
        if direction is not None:
            layer.matrix(layer.weight).add_(direction[name], alpha=step)


def soft_loss(classifier: PixelClassifier, pixels: Tensor, targets: Tensor) -> float:
    """Mean soft cross-entropy, in nats; processes share the batches."""
    return float(F.cross_entropy(classifier.predict_shared(pixels), targets))
