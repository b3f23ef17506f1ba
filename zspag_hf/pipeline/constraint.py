"""Confine every optimizer step to what the proxies do not use (eq. 5), whatever the optimizer.

Projecting the gradient is exact for plain SGD alone: momentum kept from before, AdamW's element-wise scaling and weight
decay all leave the subspace (measured: 73 % of the displacement with SGD and momentum, 40 % with AdamW). So the weights
are corrected after each step, by the optimizer's own hooks. Each row of a weight is corrected by itself, so under FSDP2
(:mod:`zspag_hf.parallel.sharding`) every process corrects the rows that it holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..parallel.sharding import group_rows, own_rows, pieces
from .layers import Layer
from .subspaces import Basis


class HardConstraint:
    """After every step, (W - W0) U = 0 exactly: the displacement, not the gradient, is projected (eq. 5).

    W <- W - (W U - W0 U) U^T in float32. Idempotent, and exact for any optimizer. Where the rank exceeds half the width
    the complement Q is stored instead: W <- W0 + (W - W0) Q Q^T.

    Args:
        layers: the constrained layers; a layer without a basis is left free.
        bases: layer name -> :class:`Basis` with ``(width, rank)`` vectors a group.
    """

    def __init__(self, layers: dict[str, Layer], bases: dict[str, Basis]):
        self.parts = []
        for name, basis in bases.items():
            layer = layers[name]
            start = layer.matrix(layer.weight.detach())
            for group, vectors in enumerate(basis.vectors):
                w0 = start[group]
                if layer.frame is not None:
                    vectors = layer.frame[group].to(vectors) @ vectors
                if vectors.shape[1] <= layer.d_in / 2:
                    u = vectors.to(w0)
                    self.parts.append((layer, group, u, w0 @ u, None))
                else:
                    full = torch.linalg.qr(vectors, mode="complete").Q
                    self.parts.append((layer, group, None, w0.clone(), full[:, vectors.shape[1] :].to(w0)))

    @torch.no_grad()
    def before_step(self, *_):
        """Nothing to remember: the projection refers to W0."""

    @torch.no_grad()
    def after_step(self, *_):
        for layer, group, u, start, q in self.parts:
            w, mine = group_rows(layer, group)
            if q is None:
                w -= (w @ u - start[mine]) @ u.T
            else:
                w.copy_(start[mine] + (w - start[mine]) @ q @ q.T)


class SoftConstraint:
    """Each step's own update is damped: W <- W_before + s (W - W_before) (I + G/mu)^-1.

    A Tikhonov-damped null space, the input half of K-FAC: every direction pays by how much the proxies use it. Not
    idempotent, so it acts on one step's update, never on the whole displacement; exact for any optimizer, momentum and
    weight decay included.

    Attributes:
        step_scale: factor s on every damped update; adaptive runs change it.
    """

    def __init__(self, layers: dict[str, Layer], dampings: dict[str, Tensor], step_scale: float = 1.0):
        self.layers = {name: layers[name] for name in dampings}
        self.step_scale = step_scale
        self.dampings: dict[str, Tensor] = {}
        self.set_dampings(dampings)
        self.before: dict[str, Tensor] = {}

    def set_dampings(self, dampings: dict[str, Tensor]) -> None:
        """Replace the dampings, ``(groups, width, width)`` a layer; tensors that layers share are converted once."""
        placed: dict[int, Tensor] = {}
        for name, damping in dampings.items():
            if id(damping) not in placed:
                placed[id(damping)] = damping.to(self.layers[name].weight)
            self.dampings[name] = placed[id(damping)]

    @torch.no_grad()
    def before_step(self, *_):
        for name, layer in self.layers.items():
            if layer.weight.requires_grad:
                self.before[name] = own_rows(layer.weight)[0].clone()

    @torch.no_grad()
    def after_step(self, *_):
        for name, before in self.before.items():
            layer = self.layers[name]
            rows, first = own_rows(layer.weight)
            update = rows - before
            rows.copy_(before)
            for (w, groups), (part, _) in zip(pieces(layer, rows, first), pieces(layer, update, first), strict=True):
                w.add_(damped(layer, part, self.dampings[name], groups), alpha=self.step_scale)
        self.before.clear()


def damped(layer: Layer, update: Tensor, damping: Tensor, groups: slice = slice(None)) -> Tensor:
    """``update @ damping``, ``(groups, n, d_in)``, any rows of the named groups; outside of a layer's frame nothing is
    damped."""
    damping = damping[groups].to(update)
    if layer.frame is None:
        return update @ damping
    frame = layer.frame[groups].to(update)
    inside = update @ frame
    return update - (inside - inside @ damping) @ frame.mT


def attach(constraint: HardConstraint | SoftConstraint, optimizer: torch.optim.Optimizer) -> list:
    """Run the constraint around every ``optimizer.step()``; returns handles with ``remove()``."""
    return [
        optimizer.register_step_pre_hook(constraint.before_step),
        optimizer.register_step_post_hook(constraint.after_step),
    ]


def freeze_unconstrained(model: torch.nn.Module, names: set[str]) -> None:
    """Freeze every parameter but the weights of the named layers: biases, norms, tokens, tables, embeddings."""
    weights = {id(model.get_submodule(name).weight) for name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in weights)
