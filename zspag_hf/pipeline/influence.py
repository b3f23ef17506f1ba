"""Influence of training on (x, label k) upon the proxies' loss, for every label at once (eq. 7-10).

With g the gradient of the proxies' mean loss, H a damped curvature and v = (H + lambda I)^-1 g, the first-order change
of the proxies' loss when (x, y) is upweighted by epsilon is -epsilon v . grad l(x, y) (eq. 9). The soft cross-entropy
is linear in y: v . grad l(x, y) = sum_k y_k a_k with a_k = -v . grad log p_k(x), so one forward-mode derivative of log
p(x) along v gives all C influences (the literal form takes one backward pass a label).

The paper names no solver. K-FAC is kept: on digits, with v = g, conjugate gradients and LiSSA, accuracies and distances
to a retrained model were the same within their spread.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp
from tqdm.auto import tqdm

from ..parallel.processes import my_batches, summed
from .classifier import PixelClassifier, frozen, gradient_batch, to_unit
from .gradients import logits_with, math_attention
from .layers import Layer, Layers, Tensors

DAMPING = 0.01  # lambda, relative to a mean eigenvalue of 1 of both factors


def kfac(
    classifier: PixelClassifier, pixels: Tensor, layers: Layers, grams: Tensors, g: Tensors, seed: int = 0
) -> dict[str, Tensor]:
    """v = H^-1 g of eq. 7-9, a layer at a time: (B + DAMPING)^-1 g (A + DAMPING)^-1, A the Gram matrices at hand, B the
    output-gradient factor; g and v are shaped as the weights.

    B is estimated on the pixels ``(N, channels, H, W)`` in one backward pass with labels drawn from the model (Martens
    and Grosse 2015). Both factors are scaled to a mean eigenvalue of 1 first, so v is right up to one factor a layer,
    and the damping is relative.
    """
    factors = output_gradient_factors(classifier, pixels, layers, seed=seed)
    solved = {}
    for name, layer in layers.items():
        matrix = layer.matrix(g[name])
        a = unit_mean(grams[name].to(matrix), layer.d_in)
        b = unit_mean(factors[name].to(matrix), factors[name].shape[-1])
        left = torch.linalg.solve(b + DAMPING * torch.eye(b.shape[-1]).to(matrix), matrix)
        solved[name] = torch.empty_like(g[name])
        layer.matrix(solved[name]).copy_(divided(layer, left, a, DAMPING))  # H^-1 of eq. 7, applied to g
    return solved


def unit_mean(factor: Tensor, width: int) -> Tensor:
    """Scale each factor to a mean eigenvalue of 1 over ``width`` directions; a factor of zeros stays zero."""
    mean = factor.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] / width
    return factor / mean.clamp_min(1e-30)


def divided(layer: Layer, rows: Tensor, a: Tensor, damping: float) -> Tensor:
    """rows (A + damping)^-1, ``(groups, out, d_in)``; A is zero outside of a layer's frame."""
    eye = torch.eye(a.shape[-1]).to(a)
    if layer.frame is None:
        return torch.linalg.solve(a + damping * eye, rows.mT).mT
    frame = layer.frame.to(rows)
    inside = rows @ frame
    return torch.linalg.solve(a + damping * eye, inside.mT).mT @ frame.mT + (rows - inside @ frame.mT) / damping


def output_gradient_factors(
    classifier: PixelClassifier, pixels: Tensor, layers: Layers, seed: int = 0
) -> dict[str, Tensor]:
    """Layer name -> ``(groups, out/groups, out/groups)``, the second moment of the loss gradient at its output."""
    classifier.model.eval()
    factors = {}
    for name, layer in layers.items():  # zeros stay for a layer whose output does not reach the logits
        groups, width, _ = layer.matrix(layer.weight).shape
        factors[name] = layer.weight.new_zeros(groups, width, width)

    def look(name: str, layer: Layer) -> Any:
        def on_gradient(grad: Tensor) -> None:
            if grad.dim() == 4 and layer.weight.dim() == 4:
                grad = grad.movedim(1, -1)
            grad = grad.reshape(-1, layer.groups, grad.shape[-1] // layer.groups).movedim(0, 1)
            factors[name] = factors[name] + grad.mT @ grad

        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(on_gradient)

        return hook

    hooks = [layer.module.register_forward_hook(look(name, layer)) for name, layer in layers.items()]
    try:
        with frozen(classifier.model):
            for rows in my_batches(len(pixels), gradient_batch(pixels)):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + rows.start)
                x = to_unit(pixels[rows], classifier.device).requires_grad_()
                with torch.enable_grad():
                    logits = classifier(x)
                    drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator).squeeze(1)
                    torch.autograd.grad(F.cross_entropy(logits, drawn.to(logits.device), reduction="sum"), x)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: summed(factor) for name, factor in factors.items()}


def label_influence(
    classifier: PixelClassifier, pixels: Tensor, v: Tensors, layers: Layers, disable_progress: bool = True
) -> Tensor:
    """a_ik = -v . grad log p_k(x_i), ``(N, C)`` on the CPU: one forward-mode derivative along v a batch (eq. 9).

    Training on (x_i, k) changes the proxies' loss by -epsilon a_ik to first order: at once, a larger a_ik is a better
    label (see :func:`.pseudo_labels.pseudo_labels` on the sign).
    """
    classifier.model.eval()
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}
    direction = {f"{name}.weight": v[name] for name in layers}
    out = torch.zeros(len(pixels), classifier.num_labels)
    batches = my_batches(len(pixels), gradient_batch(pixels))
    for rows in tqdm(batches, desc="Influence", disable=disable_progress):
        x = to_unit(pixels[rows], classifier.device)

        def log_p(weights: dict[str, Tensor], x: Tensor = x) -> Tensor:
            return logits_with(classifier, weights, x).log_softmax(1)

        with math_attention(), torch.no_grad():
            along: Tensor = jvp(log_p, (weights,), (direction,))[1]
        out[rows] = -along.float().cpu()  # eq. 9: v . grad l(x_i, k), all k at once
    return summed(out)
