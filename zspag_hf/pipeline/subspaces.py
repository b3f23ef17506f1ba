"""Gram matrices -> per weight an orthonormal basis to protect (eq. 3-4), or a damping that protects by degrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .classifier import BATCH, PixelClassifier, to_unit
from .grams import input_hooks, shared_inputs
from .layers import Layer

T = TypeVar("T")
ROUNDING = 1e3  # a mu under so many roundings of the trace, times the width, is not to be divided by


@dataclass(frozen=True)
class Basis:
    """A subspace of one layer's input space.

    Attributes:
        vectors: per group, ``(d_in, rank)`` float64 with orthonormal columns.
        energy: per group, the share of the Gram matrix' trace that the columns hold, in [0, 1].
    """

    vectors: tuple[Tensor, ...]
    energy: tuple[float, ...]

    @property
    def rank(self) -> int:
        """Mean rank over the groups, rounded."""
        return round(sum(v.shape[1] for v in self.vectors) / len(self.vectors))


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, clamped at 0) and eigenvectors of one ``(d, d)`` Gram matrix.

    A wide, nearly singular Gram matrix can fail to converge in float64; then a relative jitter of 1e-12 is added, which
    moves no eigenvalue by more than that share of the trace.
    """
    values, vectors = with_jitter(torch.linalg.eigh, gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def eigenvalues(gram: Tensor) -> Tensor:
    """The eigenvalues of :func:`eigh` alone, in a third of the time."""
    return with_jitter(torch.linalg.eigvalsh, gram).flip(0).clamp_min(0)


def with_jitter(decompose, gram: Tensor):
    try:
        return decompose(gram)
    except torch.linalg.LinAlgError:
        jitter = 1e-12 * gram.diagonal().sum()
        return decompose(gram + jitter * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))


def rank_at(values: Tensor, energy_threshold: float) -> int:
    """Smallest r whose leading eigenvalues hold the share ``energy_threshold`` of the trace, at least 1.

    The closest published code stops one short of that and can return 0, an unprotected layer.
    """
    share = values.cumsum(0) / values.sum().clamp_min(1e-300)
    return int((share < energy_threshold - 1e-12).sum().clamp_max(len(values) - 1)) + 1


def inverse(gram: Tensor, mu: float) -> Tensor:
    """(I + G / mu)^-1 of one ``(d, d)`` Gram matrix."""
    rounding = ROUNDING * len(gram) * torch.finfo(gram.dtype).eps
    if mu < rounding * float(gram.diagonal().sum()):  # eigenvalues that rounding left below zero would count
        values, vectors = eigh(gram)
        return (vectors / (1 + values / mu)) @ vectors.T
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(eye + gram / mu))


class LayerGrams(Mapping):
    """Layer name -> Gram matrix, where layers that read the same input share one.

    Args:
        tensors: owner -> ``(groups, d, d)``. owner: layer name -> the layer that its matrix stands under.
    """

    def __init__(self, tensors: Mapping[str, Tensor], owner: dict[str, str]):
        self.tensors, self.owner = tensors, owner

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.owner[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.owner)

    def __len__(self) -> int:
        return len(self.owner)


class Spectrum:
    """Eigenvalues of every layer's Gram matrix, and what is made from the matrices by them, one decomposition per
    distinct matrix. Eigenvectors are not kept: only the hard form needs them, once.

    Args:
        grams: layer name -> ``(groups, d, d)``.
        device: where to decompose.
        owner: layer name -> the first layer with the same matrix; unset: by the tensors themselves.
    """

    def __init__(
        self, grams: Mapping[str, Tensor], device: torch.device | str = "cpu", owner: dict[str, str] | None = None
    ):
        self.grams, self.device = grams, device
        first: dict[int, str] = {}
        self.owner = owner or {name: first.setdefault(id(gram), name) for name, gram in grams.items()}
        self.values = self.by_owner(lambda name: [eigenvalues(group.to(device)).cpu() for group in grams[name]])

    def by_owner(self, make: Callable[[str], T]) -> dict[str, T]:
        """``make(name)`` of every layer, once for layers that share a matrix."""
        done = {name: make(name) for name in dict.fromkeys(self.owner.values())}
        return {name: done[owner] for name, owner in self.owner.items()}

    def rank(self, name: str, energy_threshold: float) -> int:
        """Mean over the groups of the rank at the threshold, rounded."""
        ranks = [rank_at(values, energy_threshold) for values in self.values[name]]
        return round(sum(ranks) / len(ranks))

    def basis(self, name: str, energy_threshold: float) -> Basis:
        """The leading eigenvectors up to the energy threshold: the protected subspace of the hard form (eq. 3)."""
        found, energy = [], []
        for gram in self.grams[name]:
            values, vectors = (part.cpu() for part in eigh(gram.to(self.device)))
            r = rank_at(values, energy_threshold)
            found.append(vectors[:, :r].contiguous())
            energy.append(float(values[:r].sum() / values.sum().clamp_min(1e-300)))
        return Basis(tuple(found), tuple(energy))

    def bases(self, energy_threshold: float) -> dict[str, Basis]:
        """:meth:`basis` of every layer; layers that share a Gram matrix share it."""
        return self.by_owner(lambda name: self.basis(name, energy_threshold))

    def damping(self, name: str, energy_threshold: float) -> Tensor:
        """(I + G / mu)^-1 per group, ``(groups, d, d)`` float64, mu the eigenvalue at the energy threshold: the soft
        form. 1/2 at that eigenvalue, near 1 where proxies use a direction less, near 0 where they use it more."""
        damped = []
        for gram, values in zip(self.grams[name], self.values[name], strict=True):
            mu = float(values[rank_at(values, energy_threshold) - 1].clamp_min(1e-300))
            damped.append(inverse(gram.to(self.device), mu))
        return torch.stack(damped)

    def each_damped(self, energy_threshold: float, use: Callable[[str, Tensor], T]) -> dict[str, T]:
        """``use(name, damping)`` of every layer, with one damping in memory at a time."""
        found = {}
        for owner in dict.fromkeys(self.owner.values()):
            damping = self.damping(owner, energy_threshold).float()
            found |= {name: use(name, damping) for name, its in self.owner.items() if its == owner}
        return {name: found[name] for name in self.owner}

    def dampings(self, energy_threshold: float) -> dict[str, Tensor]:
        """:meth:`damping` of every layer, in float32; layers that share a Gram matrix share the tensor."""
        return self.each_damped(energy_threshold, lambda _name, damping: damping)


def left_singular(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors ``(d, min(d, n))`` and singular values, descending, of one ``(d, n)`` matrix (eq. 3 and 4).

    Merged bases have many equal singular values, on which LAPACK can fail to converge (met at 864 x 909, with 200
    classes); the transpose has the same decomposition, and takes it another way.

    Raises:
        torch.linalg.LinAlgError: neither converges.
    """
    try:
        left, singular, _ = torch.linalg.svd(columns, full_matrices=False)
    except torch.linalg.LinAlgError:
        _, singular, right = torch.linalg.svd(columns.T.contiguous(), full_matrices=False)
        left = right.T
    return left, singular


def merge_class(merged: Tensor | None, rows: Tensor, energy_threshold: float) -> Tensor:
    """One class of eq. 3-4 as written: U_k from an SVD of its rows, then S <- SVD(concat(S, U_k)), without truncation.

    Singular values under 1e-6 of the largest are rounding, not directions. The order of the classes does not matter to
    the span.

    Args:
        merged: S so far, ``(d_in, rank)``, or None for the first class.
        rows: ``(n, d_in)`` input rows of one class.

    Returns:
        S, ``(d_in, rank)`` float64, orthonormal columns.
    """
    left, singular = left_singular(rows.double().T)  # eq. 3
    u = left[:, : rank_at(singular.square(), energy_threshold)]
    if merged is None:
        return u
    left, singular = left_singular(torch.cat([merged, u], dim=1))  # eq. 4
    return left[:, singular > 1e-6 * singular[0]]


@torch.no_grad()
def literal_bases(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: dict[str, Layer],
    energy_threshold: float,
    batch_size: int = BATCH,
) -> dict[str, Basis]:
    """Bases by the literal eq. 3-4: the rows of one class at a time in memory, n x d numbers a layer.

    For comparison with :func:`zspag_hf.pipeline.grams.collect_grams`, not for large layers.
    """
    classifier.model.eval()
    merged: dict[str, list[Tensor | None]] = {name: [None] * layer.groups for name, layer in layers.items()}
    shared = shared_inputs(classifier, layers, pixels[:2])
    leaders = {name: layer for name, layer in layers.items() if name not in shared}
    for k in labels.unique().tolist():
        rows: dict[str, list[Tensor]] = {name: [] for name in leaders}

        def keep(name, x, rows=rows):
            rows[name].append(leaders[name].rows(x).double().cpu())

        for batch in pixels[labels == k].split(batch_size):
            with input_hooks(leaders, keep):
                classifier(to_unit(batch, classifier.device))
        for name in leaders:
            by_group = torch.cat(rows[name], dim=1)
            merged[name] = [merge_class(s, r, energy_threshold) for s, r in zip(merged[name], by_group, strict=True)]
    bases = {n: Basis(tuple(parts), (float("nan"),) * len(parts)) for n, parts in merged.items() if n not in shared}
    return {name: bases[shared.get(name, name)] for name in layers}


def random_bases(bases: Mapping[str, Basis], seed: int) -> dict[str, Basis]:
    """Bases of random subspaces, as wide and of the same rank per layer and group: table 5's "random subspace".

    Uniform over the subspaces (the Q of a normal matrix), in a wide layer over those of its frame. Layers that share a
    basis share the random one. What share of the energy it holds is not measured: NaN.
    """
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for basis in bases.values():
        if id(basis) not in drawn:
            normal = [torch.randn(u.shape, generator=generator, dtype=torch.float64) for u in basis.vectors]
            vectors = tuple(torch.linalg.qr(rows).Q for rows in normal)
            drawn[id(basis)] = Basis(vectors, (float("nan"),) * len(vectors))
    return {name: drawn[id(basis)] for name, basis in bases.items()}


def free_energy(gram: Tensor, complement: Tensor) -> float:
    """Share of a Gram matrix' energy that an update passed through ``complement`` can still reach, in [0, 1].

    Args:
        gram: ``(groups, d, d)``, of the forget images.
        complement: ``(groups, d, d)``: I - U U^T, or the damping (I + G/mu)^-1.
    """
    return float(torch.einsum("gij,gji->", complement, gram) / torch.einsum("gii->", gram).clamp_min(1e-300))
