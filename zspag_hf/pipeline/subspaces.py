"""Gram matrices -> per weight an orthonormal basis to protect (eq. 3-4), or a damping that protects by degrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .classifier import PixelClassifier
from .grams import TINY, collect_grams
from .layers import Layers, Tensors

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
        vectors = []
        for gram in self.grams[name]:
            vectors.append(leading(gram.to(self.device), energy_threshold).cpu().contiguous())
        return Basis(tuple(vectors))

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


def leading(gram: Tensor, energy_threshold: float) -> Tensor:
    """Eq. 3: the left singular vectors that hold the share ``energy_threshold`` of the energy of a layer's inputs R,
    ``(d, rank)``; they are the eigenvectors of its Gram matrix R R^T."""
    values, vectors = eigh(gram)
    return vectors[:, : rank_at(values, energy_threshold)]


def counted(counts: Tensor | None, gram: Tensor, energy_threshold: float) -> Tensor:
    """One class of UNSC's merge (arXiv 2404.13588), which needs all classes before it cuts: adds U_k U_k^T, so that in
    the end the eigenvectors of the sum are the left singular vectors of concat(U_1, ..., U_K)."""
    u = leading(gram, energy_threshold)
    return u @ u.T if counts is None else counts + u @ u.T


def extended(basis: Tensor | None, gram: Tensor, energy_threshold: float) -> Tensor:
    """One class of GPM's merge (arXiv 2103.09762): to S, ``(d, rank)``, come as many leading directions of what it does
    not hold of the class yet as bring the held share of the class's energy to the threshold."""
    basis = gram[:, :0] if basis is None else basis
    outside = torch.eye(len(gram)).to(gram) - basis @ basis.T
    values, vectors = eigh(outside @ gram @ outside)
    left = values.flip(0).cumsum(0).flip(0)  # energy outside of S and of the directions before each
    most = (1 - energy_threshold + 1e-12) * gram.trace()
    added = min(int((left > most).sum()), len(gram) - basis.shape[1])
    return torch.linalg.qr(torch.cat([basis, vectors[:, :added]], dim=1)).Q


def merged_bases(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: Layers,
    energy_threshold: float,
    merge: str = "truncated",
    max_memory_gb: float = float("inf"),
    disable_progress: bool = True,
) -> dict[str, Basis]:
    """Bases by eq. 3-4, class by class: S_l <- SVD(concat(S_l, U_l^k)), of layers as of
    :func:`.grams.collect_grams`, which one decomposition a layer makes do.

    The paper does not say where eq. 4 ends. Without a cut nine nearly equal bases of 24 dimensions fill all 128 of a
    ViT's layer, and nothing can move. "truncated", UNSC's, cuts the SVD of the concatenation at the energy threshold: a
    singular value counts in how many classes a direction leads, in any order. "gpm" adds what a class lacks.

    Args:
        pixels, labels, max_memory_gb: as in :func:`.grams.collect_grams`; one class's matrices are held at once, and of
            "truncated" one sum beside them.
    """
    add = {"truncated": counted, "gpm": extended}[merge]
    merged: dict[str, list[Tensor]] = {}
    classes = labels.unique()
    for k in classes:
        its = labels == k
        grams = collect_grams(classifier, pixels[its], labels[its], layers, disable_progress, max_memory_gb)
        first: dict[int, str] = {}
        owner = {name: first.setdefault(id(gram), name) for name, gram in grams.items()}
        for name in first.values():
            so_far = merged.get(name, [None] * len(grams[name]))
            groups = (group.to(classifier.device) for group in grams[name])
            merged[name] = [add(s, group, energy_threshold) for s, group in zip(so_far, groups, strict=True)]
    if merge == "truncated":
        cut = energy_threshold if len(classes) > 1 else 1.0  # of one class all directions count alike
        merged = {name: [leading(counts, cut) for counts in parts] for name, parts in merged.items()}
    bases = {name: Basis(tuple(part.cpu().contiguous() for part in parts)) for name, parts in merged.items()}
    return {name: bases[owner[name]] for name in layers}


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
