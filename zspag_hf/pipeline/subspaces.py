"""Gram matrices -> per weight an orthonormal basis to protect (eq. 3-4), or a damping that protects by degrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .classifier import BATCH, PixelClassifier, to_unit
from .grams import TINY, readers, shared_inputs
from .layers import Layers, Tensors, input_hooks

T = TypeVar("T")
ROUNDING = 1e3  # a mu under so many roundings of the trace, times the width, is not to be divided by


@dataclass(frozen=True)
class Basis:
    """A subspace of one layer's input space: per group, ``(width, rank)`` float64 with orthonormal columns."""

    vectors: tuple[Tensor, ...]

    @property
    def rank(self) -> int:
        """Mean rank over the groups, rounded."""
        return round(sum(v.shape[1] for v in self.vectors) / len(self.vectors))


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, clamped at 0) and eigenvectors of one ``(d, d)`` Gram matrix."""
    values, vectors = with_jitter(torch.linalg.eigh, gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def eigenvalues(gram: Tensor) -> Tensor:
    """The eigenvalues of :func:`eigh` alone, in a third of the time."""
    return with_jitter(torch.linalg.eigvalsh, gram).flip(0).clamp_min(0)


def with_jitter(decompose: Callable[[Tensor], T], gram: Tensor) -> T:
    """A wide, nearly singular Gram matrix can fail to converge in float64; then a relative jitter of 1e-12 is added,
    which moves no eigenvalue by more than that share of the trace."""
    try:
        return decompose(gram)
    except torch.linalg.LinAlgError:
        jitter = 1e-12 * gram.diagonal().sum()
        return decompose(gram + jitter * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))


def rank_at(values: Tensor, energy_threshold: float) -> int:
    """Smallest r whose leading eigenvalues hold the share ``energy_threshold`` of the trace, at least 1; the closest
    published code stops one short of that and can return 0, an unprotected layer."""
    share = values.cumsum(0) / values.sum().clamp_min(TINY)
    return int((share < energy_threshold - 1e-12).sum().clamp_max(len(values) - 1)) + 1


def inverse(gram: Tensor, mu: float) -> Tensor:
    """(I + G / mu)^-1 of one ``(d, d)`` Gram matrix."""
    rounding = ROUNDING * len(gram) * torch.finfo(gram.dtype).eps
    if mu < rounding * float(gram.diagonal().sum()):  # eigenvalues that rounding left below zero would count
        values, vectors = eigh(gram)
        return (vectors / (1 + values / mu)) @ vectors.T
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(eye + gram / mu))


class LayerGrams(Mapping[str, Tensor]):
    """Layer name -> Gram matrix, from tensors ``(groups, d, d)`` by the names of their owners, and each layer's owner:
    layers that read the same input share one."""

    def __init__(self, tensors: Tensors, owner: dict[str, str]):
        self.tensors, self.owner = tensors, owner

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.owner[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.owner)

    def __len__(self) -> int:
        return len(self.owner)


class Spectrum:
    """Eigenvalues of every layer's Gram matrix ``(groups, d, d)``, and what is made from the matrices by them, one
    decomposition per distinct matrix, on the device. Eigenvectors are not kept: only the hard form needs them, once.

    Args:
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
        """The leading eigenvectors up to the energy threshold: the protected subspace of the hard form."""
        leading = []
        for gram in self.grams[name]:
            values, vectors = (part.cpu() for part in eigh(gram.to(self.device)))
            leading.append(vectors[:, : rank_at(values, energy_threshold)].contiguous())
        return Basis(tuple(leading))

    def bases(self, energy_threshold: float) -> dict[str, Basis]:
        """:meth:`basis` of every layer; layers that share a Gram matrix share it."""
        return self.by_owner(lambda name: self.basis(name, energy_threshold))

    def damping(self, name: str, energy_threshold: float) -> Tensor:
        """(I + G / mu)^-1 per group, ``(groups, d, d)`` float64, mu the eigenvalue at the energy threshold: the soft
        form. 1/2 at that eigenvalue, near 1 where proxies use a direction less, near 0 where they use it more."""
        damped = []
        for gram, values in zip(self.grams[name], self.values[name], strict=True):
            mu = float(values[rank_at(values, energy_threshold) - 1].clamp_min(TINY))
            damped.append(inverse(gram.to(self.device), mu))
        return torch.stack(damped)

    def each_damped(self, energy_threshold: float, use: Callable[[str, Tensor], T]) -> dict[str, T]:
        """``use(name, damping)`` of every layer, in float32, with one damping in memory at a time."""
        made: dict[str, T] = {}
        for owner in dict.fromkeys(self.owner.values()):
            damping = self.damping(owner, energy_threshold).float()
            made |= {name: use(name, damping) for name, its in self.owner.items() if its == owner}
        return {name: made[name] for name in self.owner}

    def dampings(self, energy_threshold: float) -> dict[str, Tensor]:
        """:meth:`damping` of every layer, in float32; layers that share a Gram matrix share the tensor."""
        return self.each_damped(energy_threshold, lambda _name, damping: damping)


def left_singular(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors ``(d, min(d, n))`` and singular values, descending, of one ``(d, n)`` matrix."""
    try:
        left, singular, _ = torch.linalg.svd(columns, full_matrices=False)
    except torch.linalg.LinAlgError:  # of a merged basis' many equal values (met at 864 x 909); its transpose converges
        _, singular, right = torch.linalg.svd(columns.T.contiguous(), full_matrices=False)
        left = right.T
    return left, singular


def merge_class(merged: Tensor | None, rows: Tensor, energy_threshold: float) -> Tensor:
    """One class of eq. 3-4 as written: U_k from an SVD of its rows ``(n, d_in)``, then S <- SVD(concat(S, U_k)), from S
    so far or None, without truncation: ``(d_in, rank)`` float64, orthonormal columns. Singular values under 1e-6 of the
    largest are rounding, not directions. The order of the classes does not matter to the span."""
    left, singular = left_singular(rows.double().T)  # eq. 3
    u = left[:, : rank_at(singular.square(), energy_threshold)]
    if merged is None:
        return u
    left, singular = left_singular(torch.cat([merged, u], dim=1))  # eq. 4
    return left[:, singular > 1e-6 * singular[0]]


@torch.no_grad()
def literal_bases(
    classifier: PixelClassifier, pixels: Tensor, labels: Tensor, layers: Layers, energy_threshold: float
) -> dict[str, Basis]:
    """Bases by the literal eq. 3-4: the rows of one class at a time in memory, n x d numbers a layer. For comparison
    with :func:`zspag_hf.pipeline.grams.collect_grams`, not for large layers."""
    classifier.model.eval()
    shared = shared_inputs(classifier, layers, pixels[:2])
    leaders = {name: layer for name, layer in layers.items() if name not in shared}
    merged: dict[str, list[Tensor]] = {}
    for k in labels.unique().tolist():
        rows: dict[str, list[Tensor]] = {name: [] for name in leaders}

        def keep(name: str, x: Tensor, rows: dict[str, list[Tensor]] = rows) -> None:
            rows[name].append(leaders[name].rows(x).double().cpu())

        with input_hooks(readers(leaders), keep):
            for batch in pixels[labels == k].split(BATCH):
                classifier(to_unit(batch, classifier.device))
        for name, layer in leaders.items():
            so_far = merged.get(name, [None] * layer.groups)
            by_group = zip(so_far, torch.cat(rows[name], dim=1), strict=True)
            merged[name] = [merge_class(s, r, energy_threshold) for s, r in by_group]
    bases = {name: Basis(tuple(parts)) for name, parts in merged.items()}
    return {name: bases[shared.get(name, name)] for name in layers}


def random_bases(bases: Mapping[str, Basis], seed: int) -> dict[str, Basis]:
    """Bases of random subspaces, as wide and of the same rank per layer and group: table 5's "random subspace", uniform
    (the Q of a normal matrix), in a wide layer within its frame. Layers that share a basis share the random one."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, Basis] = {}
    for basis in bases.values():
        if id(basis) not in drawn:
            normal = [torch.randn(u.shape, generator=generator, dtype=torch.float64) for u in basis.vectors]
            drawn[id(basis)] = Basis(tuple(torch.linalg.qr(rows).Q for rows in normal))
    return {name: drawn[id(basis)] for name, basis in bases.items()}


def free_energy(gram: Tensor, complement: Tensor) -> float:
    """Share of the energy of a Gram matrix ``(groups, d, d)``, of forget images, that an update passed through the
    complement ``(groups, d, d)``, I - U U^T or a damping, can still reach, in [0, 1]."""
    return float(torch.einsum("gij,gji->", complement, gram) / torch.einsum("gii->", gram).clamp_min(TINY))
