"""Proxies -> one Gram matrix and one orthonormal basis per weight (eq. 3-4), streamed.

Stacking every input row of every proxy, as eq. 3 reads, needs n x d numbers a layer. Its left singular vectors and
squared singular values are the eigenpairs of the d x d Gram matrix R R^T, which is summed batch by batch instead.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .classifier import PixelClassifier, to_unit
from .layers import Layer


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


@torch.no_grad()
def collect_grams(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: dict[str, Layer],
    batch_size: int = 64,
    disable_progress: bool = True,
) -> dict[str, Tensor]:
    """Mean over labels of the trace-normalised Gram matrices of every layer's input.

    G = (1/K) sum_k R_k R_k^T / tr(R_k R_k^T): each class weighs the same, in any order, with one matrix a layer for any
    number of classes. This replaces the incremental merge of eq. 4 (see :func:`merge_class`); the ranks are the same on
    a small ViT. Two forward passes: the first measures the traces.

    Args:
        pixels: ``(N, channels, H, W)``, uint8 or float in [0, 1].
        labels: ``(N,)``, the class that each image stands for.

    Returns:
        layer name -> ``(groups, d_in, d_in)`` float64 on the CPU, symmetric, trace 1 over all groups. Layers that read
        the same input (q, k and v) share one tensor.
    """
    classes, index = labels.unique(return_inverse=True)
    traces = {name: torch.zeros(len(classes), dtype=torch.float64) for name in layers}
    grams = {
        name: torch.zeros(layer.groups, layer.d_in, layer.d_in, dtype=torch.float64, device=classifier.device)
        for name, layer in layers.items()
    }

    def measure(name, rows, which):
        per_image = rows.square().sum(-1).sum(0).view(len(which), -1).sum(1)
        traces[name].index_add_(0, which, per_image.cpu())

    def accumulate(name, rows, which):
        scale = (len(classes) * traces[name].clamp_min(1e-300)).rsqrt()[which].to(rows)
        rows = rows * scale.repeat_interleave(rows.shape[1] // len(which))[None, :, None]
        grams[name] += rows.transpose(1, 2) @ rows

    classifier.model.eval()
    shared: dict[str, str] = {}
    batches = list(zip(pixels.split(batch_size), index.split(batch_size), strict=True))
    for visit in (measure, accumulate):
        for batch, which in tqdm(batches, desc=f"Subspaces: {visit.__name__}", disable=disable_progress):
            with input_hooks(
                layers, shared, lambda name, rows, which=which, visit=visit: visit(name, rows.double(), which)
            ):
                classifier(to_unit(batch, classifier.device))
    own = {name: (gram + gram.mT).cpu() / 2 for name, gram in grams.items() if name not in shared}
    return {name: own[shared.get(name, name)] for name in grams}


@contextlib.contextmanager
def input_hooks(layers: dict[str, Layer], shared: dict[str, str], visit):
    """Call ``visit(name, rows)`` on every layer's input during a forward pass, once for inputs that layers share.

    Sharing is read off the tensors themselves (address, shape, strides, version), never off names: the first pass fills
    ``shared`` with follower -> leader for layers that read the same tensors, later passes skip the followers.
    """
    seen: dict[tuple, Tensor] = {}  # holds the tensors, so that no address is reused within the pass
    reads: dict[str, tuple] = {}  # all that a layer reads, a module may run more than once

    def look(name: str, layer: Layer):
        def hook(_module: nn.Module, args: tuple):
            x = args[0].detach()
            if name in shared:
                return
            key = (x.data_ptr(), x.shape, x.stride(), x._version, layer.row_key())
            seen.setdefault(key, x)
            reads[name] = (*reads.get(name, ()), key)
            visit(name, layer.rows(x))

        return hook

    hooks = [
        module.register_forward_pre_hook(look(name, layer))
        for name, layer in layers.items()
        for module in (layer.module, *layer.sharers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    leaders: dict[tuple, str] = {}
    for name, keys in reads.items():
        leader = leaders.setdefault(keys, name)
        if leader != name and not layers[name].sharers and not layers[leader].sharers:
            shared[name] = leader


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, clamped at 0) and eigenvectors of one ``(d, d)`` Gram matrix.

    A wide, nearly singular Gram matrix can fail to converge in float64; then a relative jitter of 1e-12 is added, which
    moves no eigenvalue by more than that share of the trace.
    """
    try:
        values, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError:
        jitter = 1e-12 * gram.diagonal().sum()
        values, vectors = torch.linalg.eigh(gram + jitter * torch.eye(len(gram), dtype=gram.dtype))
    return values.flip(0).clamp_min(0), vectors.flip(1)


def rank_at(values: Tensor, energy_threshold: float) -> int:
    """Smallest r whose leading eigenvalues hold the share ``energy_threshold`` of the trace, at least 1.

    The closest published code stops one short of that and can return 0, an unprotected layer.
    """
    share = values.cumsum(0) / values.sum().clamp_min(1e-300)
    return int((share < energy_threshold - 1e-12).sum().clamp_max(len(values) - 1)) + 1


class Spectrum:
    """Eigenpairs of every layer's Gram matrix, one decomposition per distinct matrix."""

    def __init__(self, grams: dict[str, Tensor]):
        done: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, gram in grams.items():
            if id(gram) not in done:
                done[id(gram)] = [eigh(group) for group in gram]
            self.pairs[name] = done[id(gram)]

    def basis(self, name: str, energy_threshold: float) -> Basis:
        """The leading eigenvectors up to the energy threshold: the protected subspace of the hard form (eq. 3)."""
        ranks = [rank_at(values, energy_threshold) for values, _ in self.pairs[name]]
        return Basis(
            tuple(vectors[:, :r].contiguous() for r, (_, vectors) in zip(ranks, self.pairs[name], strict=True)),
            tuple(
                float(values[:r].sum() / values.sum().clamp_min(1e-300))
                for r, (values, _) in zip(ranks, self.pairs[name], strict=True)
            ),
        )

    def damping(self, name: str, energy_threshold: float) -> Tensor:
        """(I + G / mu)^-1 per group, ``(groups, d, d)`` float64, mu the eigenvalue at the energy threshold: the soft
        form. 1/2 at that eigenvalue, near 1 where proxies use a direction less, near 0 where they use it more."""
        damped = []
        for values, vectors in self.pairs[name]:
            mu = values[rank_at(values, energy_threshold) - 1].clamp_min(1e-300)
            damped.append((vectors / (1 + values / mu)) @ vectors.T)
        return torch.stack(damped)

    def dampings(self, energy_threshold: float) -> dict[str, Tensor]:
        """:meth:`damping` of every layer; layers that share a Gram matrix share the tensor."""
        done: dict[int, Tensor] = {}
        for name, pairs in self.pairs.items():
            if id(pairs) not in done:
                done[id(pairs)] = self.damping(name, energy_threshold)
        return {name: done[id(pairs)] for name, pairs in self.pairs.items()}


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
    left, singular, _ = torch.linalg.svd(rows.double().T, full_matrices=False)  # eq. 3
    u = left[:, : rank_at(singular.square(), energy_threshold)]
    if merged is None:
        return u
    left, singular, _ = torch.linalg.svd(torch.cat([merged, u], dim=1), full_matrices=False)  # eq. 4
    return left[:, singular > 1e-6 * singular[0]]


@torch.no_grad()
def literal_bases(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: dict[str, Layer],
    energy_threshold: float,
    batch_size: int = 64,
) -> dict[str, Basis]:
    """Bases by the literal eq. 3-4: the rows of one class at a time in memory, n x d numbers a layer.

    For comparison with :func:`collect_grams`, not for large layers.
    """
    classifier.model.eval()
    merged: dict[str, list[Tensor | None]] = {name: [None] * layer.groups for name, layer in layers.items()}
    shared: dict[str, str] = {}
    for k in labels.unique().tolist():
        rows: dict[str, list[Tensor]] = {name: [] for name in layers}
        for batch in pixels[labels == k].split(batch_size):
            with input_hooks(layers, shared, lambda name, r, rows=rows: rows[name].append(r.double().cpu())):
                classifier(to_unit(batch, classifier.device))
        for name in (name for name in layers if name not in shared):
            by_group = torch.cat(rows[name], dim=1)
            merged[name] = [merge_class(s, r, energy_threshold) for s, r in zip(merged[name], by_group, strict=True)]
    bases = {n: Basis(tuple(parts), (float("nan"),) * len(parts)) for n, parts in merged.items() if n not in shared}
    return {name: bases[shared.get(name, name)] for name in layers}


def free_energy(gram: Tensor, complement: Tensor) -> float:
    """Share of a Gram matrix' energy that an update passed through ``complement`` can still reach, in [0, 1].

    Args:
        gram: ``(groups, d, d)``, of the forget images.
        complement: ``(groups, d, d)``: I - U U^T, or the damping (I + G/mu)^-1.
    """
    return float(torch.einsum("gij,gji->", complement, gram) / torch.einsum("gii->", gram).clamp_min(1e-300))
