"""What the library computes otherwise, in the form in which the paper's equations read: speed.py compares the two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zspag_hf.pipeline.classifier import PixelClassifier, to_unit
from zspag_hf.pipeline.grams import shared_inputs, visit_inputs
from zspag_hf.pipeline.layers import Layer
from zspag_hf.pipeline.subspaces import Basis, rank_at


@torch.no_grad()
def stacked_bases(
    classifier: PixelClassifier, pixels: Tensor, labels: Tensor, layers: dict[str, Layer], energy_threshold: float
) -> dict[str, Basis]:
    """Eq. 3-4 with each class normalised: every input row of every image stacked, n x d numbers a layer in float32, and
    one SVD a layer in float64. Layers that read the same input share it."""
    shared = shared_inputs(classifier, layers, pixels[:2])
    leaders = {name: layer for name, layer in layers.items() if name not in shared}
    stacks: dict[str, list[Tensor]] = {name: [] for name in leaders}
    visit_inputs(classifier, pixels, leaders, lambda name, rows, _: stacks[name].append(rows), "", True)
    classes, index = labels.unique(return_inverse=True)
    bases = {}
    for name in leaders:
        rows = torch.cat(stacks.pop(name), dim=1).double()
        of_class = index.to(rows.device).repeat_interleave(rows.shape[1] // len(pixels))
        traces = torch.zeros(len(classes)).to(rows).index_add_(0, of_class, rows.square().sum((0, 2)))
        rows *= (1 / (len(classes) * traces)).sqrt()[of_class, None]
        vectors = []
        for group in rows:
            left, singular, _ = torch.linalg.svd(group.T, full_matrices=False)
            vectors.append(left[:, : rank_at(singular.square(), energy_threshold)].cpu())
        bases[name] = Basis(tuple(vectors))
    return {name: bases[shared.get(name, name)] for name in layers}


def largest_angle(one: dict[str, Basis], other: dict[str, Basis]) -> float:
    """Largest principal angle between two bases of a layer, over all layers and groups, in radians; a right angle where
    their ranks differ."""
    angles = [0.0]
    for name in one:
        for u, v in zip(one[name].vectors, other[name].vectors, strict=True):
            sine = float(torch.linalg.matrix_norm(u - v @ (v.T @ u), 2)) if u.shape == v.shape else 1.0
            angles.append(math.asin(min(1.0, sine)))
    return max(angles)


def influence_by_label(
    classifier: PixelClassifier, pixels: Tensor, v: Mapping[str, Tensor], layers: dict[str, Layer], batch_size: int = 64
) -> Tensor:
    """a_ik = -v . grad log p_k(x_i) as :func:`zspag_hf.pipeline.influence.label_influence`, one backward pass a label.

    The cheapest such form: image i runs with the weights W + e_i V, so the derivative by e_i at 0 is v . grad, of all
    images of a batch in one pass, and no gradient of a weight is formed.
    """
    classifier.model.eval().requires_grad_(False)
    out = torch.zeros(len(pixels), classifier.num_labels)
    for start in range(0, len(pixels), batch_size):
        x = to_unit(pixels[start : start + batch_size], classifier.device)
        step = torch.zeros(len(x), device=x.device, requires_grad=True)
        hooks = [layer.module.register_forward_hook(moved_along(v[name], step)) for name, layer in layers.items()]
        try:
            log_p = classifier(x).log_softmax(1)
        finally:
            for hook in hooks:
                hook.remove()
        for k in range(log_p.shape[1]):
            (slope,) = torch.autograd.grad(log_p[:, k].sum(), step, retain_graph=True)
            out[start : start + batch_size, k] = -slope.cpu()
    return out


def influence_by_image(
    classifier: PixelClassifier, pixels: Tensor, v: Mapping[str, Tensor], layers: dict[str, Layer]
) -> Tensor:
    """The same by eq. 9 as it reads: for every image and label the gradient of all weights, times v."""
    classifier.model.eval()
    weights = [layer.weight.requires_grad_() for layer in layers.values()]
    out = torch.zeros(len(pixels), classifier.num_labels)
    for i, k in itertools.product(range(len(pixels)), range(classifier.num_labels)):
        if k == 0:
            log_p = classifier(to_unit(pixels[i : i + 1], classifier.device)).log_softmax(1)
        gradient = torch.autograd.grad(log_p[0, k], weights, retain_graph=True)
        out[i, k] = -float(sum((g * v[name]).sum() for name, g in zip(layers, gradient, strict=True)))
    return out


def moved_along(weight: Tensor, step: Tensor):
    """A hook that adds ``step`` times the layer's output with another weight; image by image."""

    def hook(module: nn.Linear | nn.Conv2d, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0].detach()  # what flows back through this path is multiplied by a step of 0
        along = module._conv_forward(x, weight, None) if isinstance(module, nn.Conv2d) else F.linear(x, weight)
        return output + step.view(-1, *[1] * (output.dim() - 1)) * along

    return hook
