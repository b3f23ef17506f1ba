"""Damping and size of the first steps, from one full-batch direction per energy threshold."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from ..pipeline.classifier import PixelClassifier, gradient_batch, to_unit
from ..pipeline.constraint import damped
from ..pipeline.layers import Layer
from ..pipeline.subspaces import Spectrum
from .held_out import HeldOut

ROUND_STEPS = 10  # optimizer steps between two looks at the held-out data
PROBE_IMAGES = 256  # forget images that the first step is chosen on
SLACK = 0.1  # of the best gain: thresholds that count as no worse
THRESHOLDS = (0.9, 0.99, 0.999, 0.9999)


def forget_gradient(
    classifier: PixelClassifier,
    pixels: Tensor,
    targets: Tensor,
    layers: dict[str, Layer],
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Gradient of the mean soft cross-entropy on forget images, by layer, in matrix form ``(groups, out, d_in)``."""
    weights = [layer.weight for layer in layers.values()]
    total = [torch.zeros_like(w) for w in weights]
    for rows in my_batches(len(pixels), batch_size or gradient_batch(pixels)):
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
            direction = spectrum.each_damped(threshold, lambda name, by: damped(layers[name], gradient[name], by))
            record = probe_step(held_out, layers, start, gradient, direction, pixels, targets, loss, allowed)
            records.append({"energy_threshold": threshold} | record)
            del direction  # as large as the model, and the next one is made before the name is free
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
