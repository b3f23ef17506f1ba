"""Confine every optimizer step to what the proxies do not use (eq. 5), whatever the optimizer.

Projecting the gradient is exact for plain SGD alone: momentum kept from before, AdamW's element-wise scaling and weight
decay all leave the subspace (measured: 73 % of the displacement with SGD and momentum, 40 % with AdamW). So the weights
are corrected after each step, by the optimizer's own hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layers import Layer, Layers, Tensors
from .subspaces import Basis


class Part(NamedTuple):
    """One group of a layer: u ``(d_in, rank)`` and start = W0 u, or the complement q and start = W0 ``(out, d_in)``."""

    layer: Layer
    group: int
    u: Tensor | None
    start: Tensor
    q: Tensor | None


class HardConstraint:
    """After every step, (W - W0) U = 0 exactly: the displacement, not the gradient, is projected (eq. 5).

    W <- W - (W U - W0 U) U^T in float32. Idempotent, and exact for any optimizer. Where the rank exceeds half the width
    the complement Q is stored instead: W <- W0 + (W - W0) Q Q^T. A layer without a basis is left free.
    """

    def __init__(self, layers: Layers, bases: Mapping[str, Basis]):
        self.parts: list[Part] = []
        for name, basis in bases.items():
            layer = layers[name]
            for group, vectors in enumerate(basis.vectors):
                w0 = layer.matrix(layer.weight.detach())[group]
                if layer.frame is not None:
                    vectors = layer.frame[group].to(vectors) @ vectors
                rank = vectors.shape[1]
                if rank <= layer.d_in / 2:
                    u = vectors.to(w0)
                    self.parts.append(Part(layer, group, u, w0 @ u, None))
                else:
                    q = torch.linalg.qr(vectors, mode="complete").Q[:, rank:].to(w0)
                    self.parts.append(Part(layer, group, None, w0.clone(), q))

    def before_step(self, *_: Any) -> None:
        """Nothing to remember: the projection refers to W0."""

    @torch.no_grad()
    def after_step(self, *_: Any) -> None:
        """Project every displacement."""
        for layer, group, u, start, q in self.parts:
            w = layer.matrix(layer.weight)[group]
            if u is not None:
                w -= (w @ u - start) @ u.T  # eq. 5: P = I - U U^T, on the sum of all steps
            elif q is not None:
                w.copy_(start + (w - start) @ q @ q.T)  # the same by P = Q Q^T


class SoftConstraint:
    """Each step's own update is damped: W <- W_before + s (W - W_before) (I + G/mu)^-1.

    A Tikhonov-damped null space, the input half of K-FAC: every direction pays by how much the proxies use it. Not
    idempotent, so it acts on one step's update, never on the whole displacement; exact for any optimizer, momentum and
    weight decay included. Adaptive runs change ``step_scale``, the factor s.

    Args:
        dampings: layer name -> ``(groups, width, width)``; tensors that layers share are converted once.
    """

    def __init__(self, layers: Layers, dampings: Tensors, step_scale: float = 1.0):
        self.layers = {name: layers[name] for name in dampings}
        self.step_scale = step_scale
        placed: dict[int, Tensor] = {}
        for name, damping in dampings.items():
            if id(damping) not in placed:
                placed[id(damping)] = damping.to(self.layers[name].weight)
        self.dampings = {name: placed[id(damping)] for name, damping in dampings.items()}
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self, *_: Any) -> None:
        """Remember the weights that move."""
        for name, layer in self.layers.items():
            if layer.weight.requires_grad:
                self.before[name] = layer.weight.clone()

    @torch.no_grad()
    def after_step(self, *_: Any) -> None:
        """Damp every update."""
        for name, before in self.before.items():
            layer = self.layers[name]
            update = layer.weight - before
            layer.weight.copy_(before)
            change = damped(layer, layer.matrix(update), self.dampings[name])
            layer.matrix(layer.weight).add_(change, alpha=self.step_scale)
        self.before.clear()


def damped(layer: Layer, update: Tensor, damping: Tensor) -> Tensor:
    """``update @ damping``, ``(groups, out, d_in)``; outside of a layer's frame nothing is damped."""
    damping = damping.to(update)
    if layer.frame is None:
        return update @ damping
    frame = layer.frame.to(update)
    inside = update @ frame
    return update - (inside - inside @ damping) @ frame.mT


def attach(constraint: Any, optimizer: torch.optim.Optimizer) -> list:
    """Run ``before_step`` and ``after_step`` around every ``optimizer.step()``; returns handles with ``remove()``."""
    return [
        optimizer.register_step_pre_hook(constraint.before_step),
        optimizer.register_step_post_hook(constraint.after_step),
    ]


def freeze_unconstrained(model: torch.nn.Module, names: set[str]) -> None:
    """Freeze every parameter but the weights of the named layers: biases, norms, tokens, tables, embeddings."""
    weights = {id(model.get_submodule(name).weight) for name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in weights)
