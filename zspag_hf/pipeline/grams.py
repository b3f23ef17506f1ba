"""Proxies -> one Gram matrix per weight, streamed.

Stacking every input row of every proxy, as eq. 3 reads, needs n x d numbers a layer. Its left singular vectors and
squared singular values are the eigenpairs of the d x d Gram matrix R R^T, which is summed batch by batch instead. Where
even that is too large, the rows are described in a subspace found by random projection (:func:`find_frames`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from .classifier import PixelClassifier, to_unit
from .layers import Layer, Layers, Tensors, input_hooks

FRAME_WIDTH = 1024  # columns of a frame: more than the rank of any stack of 1,000 proxies with one row an image
GIGABYTE = 1e9
ROW_BATCH = 32  # images of a forward pass in which inputs of layers are turned into rows of float64
TINY = 1e-300  # in place of the zero energy of a layer whose input is nothing

Visit = Callable[[str, Tensor, Tensor], None]


@torch.no_grad()
def collect_grams(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: Layers,
    disable_progress: bool = True,
    max_memory_gb: float = float("inf"),
) -> dict[str, Tensor]:
    """Mean over labels of the trace-normalised Gram matrices of every layer's input.

    G = (1/K) sum_k R_k R_k^T / tr(R_k R_k^T): each class weighs the same, in any order, with one matrix a layer for any
    number of classes, in place of eq. 4's merge (:func:`.subspaces.merged_bases`); ranks are the same
    on a small ViT. A first forward pass measures the traces, which one class can do without; then one follows for each
    group of layers whose matrices fit in ``max_memory_gb`` together. Processes share the batches.

    Args:
        pixels: ``(N, channels, H, W)``, uint8 or float in [0, 1]. labels: ``(N,)``, the class an image stands for.
        max_memory_gb: bound on the matrices that are summed at the same time, at least one layer's.

    Returns:
        layer name -> ``(groups, width, width)`` float64 on the CPU, symmetric, trace 1 over all groups; width is
        ``d_in``, or the frame's. Layers that read the same input (q, k and v) share one tensor.

    Raises:
        UnlearningError: a layer's input is not finite on the images.
    """
    shared = shared_inputs(classifier, layers, pixels[:2])
    leaders = {name: layer for name, layer in layers.items() if name not in shared}
    several = len(labels.unique()) > 1  # of one class the trace is known at the end
    shares = class_shares(classifier, pixels, labels, leaders, disable_progress) if several else None
    grams: dict[str, Tensor] = {}
    for group in groups_within(leaders, max_memory_gb):
        sums = {n: zeros(classifier, layer.groups, layer.width, layer.width) for n, layer in group.items()}

        def accumulate(name: str, rows: Tensor, which: Tensor, sums: dict[str, Tensor] = sums) -> None:
            rows = rows.double()
            if shares is not None:
                scale = shares[name][which].sqrt().to(rows).repeat_interleave(rows.shape[1] // len(which))
                rows = rows * scale[None, :, None]
            sums[name] += rows.mT @ rows

        visit_inputs(classifier, pixels, group, accumulate, "Subspaces", disable_progress)
        for name, gram in sums.items():
            gram = summed(gram)
            trace = finite(name, torch.einsum("gii->", gram), len(pixels))
            gram = gram if several else gram / trace.clamp_min(TINY)
            grams[name] = ((gram + gram.mT) / 2).cpu()
        del sums, accumulate
    return {name: grams[shared.get(name, name)] for name in layers}


def class_shares(
    classifier: PixelClassifier, pixels: Tensor, labels: Tensor, layers: Layers, disable_progress: bool
) -> dict[str, Tensor]:
    """Layer name -> ``(N,)`` float64: 1 / (K tr(R_k R_k^T)) with k the image's class, what each of its rows weighs."""
    classes, index = labels.unique(return_inverse=True)
    traces = {name: zeros(classifier, len(classes)) for name in layers}

    def measure(name: str, rows: Tensor, which: Tensor) -> None:
        per_image = rows.double().square().sum(-1).sum(0).view(len(which), -1).sum(1)
        traces[name].index_add_(0, index[which].to(per_image.device), per_image)

    visit_inputs(classifier, pixels, layers, measure, "Subspaces: traces", disable_progress)
    traces = {name: finite(name, summed(trace).cpu(), len(pixels)) for name, trace in traces.items()}
    return {name: (1 / (len(classes) * trace.clamp_min(TINY)))[index] for name, trace in traces.items()}


def finite(name: str, total: Tensor, images: int) -> Tensor:
    """What a layer's inputs add up to.

    Raises:
        UnlearningError: they are not finite.
    """
    if not torch.isfinite(total).all():
        raise UnlearningError(
            f"the input of layer {name!r} is not finite on {images} images: give a model with finite outputs."
        )
    return total


def zeros(classifier: PixelClassifier, *shape: int) -> Tensor:
    """In float64, where the model is."""
    return torch.zeros(shape, dtype=torch.float64, device=classifier.device)


def groups_within(layers: Layers, max_memory_gb: float) -> list[dict[str, Layer]]:
    """The layers in order, as many at a time as have their Gram matrices in so much memory; one at least."""
    groups: list[dict[str, Layer]] = []
    room = 0.0
    for name, layer in layers.items():
        size = 8 * layer.groups * layer.width**2 / GIGABYTE
        if not groups or size > room:
            groups.append({})
            room = max_memory_gb
        groups[-1][name] = layer
        room -= size
    return groups


def visit_inputs(
    classifier: PixelClassifier, pixels: Tensor, layers: Layers, visit: Visit, title: str, disable_progress: bool
) -> None:
    """Call ``visit(name, rows, which)`` on every layer's input of every batch of this process; ``which`` are the
    batch's images."""
    classifier.model.eval()
    for batch in tqdm(my_batches(len(pixels), ROW_BATCH), desc=title, disable=disable_progress):
        which = torch.arange(batch.start, batch.stop)

        def look(name: str, x: Tensor, which: Tensor = which) -> None:
            visit(name, layers[name].rows(x), which)

        with input_hooks(readers(layers), look):
            classifier(to_unit(pixels[batch], classifier.device))


def readers(layers: Layers) -> list[tuple[str, nn.Module]]:
    """(layer name, module) of every layer and of its sharers."""
    return [(name, module) for name, layer in layers.items() for module in (layer.module, *layer.sharers)]


@torch.no_grad()
def shared_inputs(classifier: PixelClassifier, layers: Layers, pixels: Tensor) -> dict[str, str]:
    """Follower -> leader for layers that read the same tensors. By one forward pass on a few images, from the tensors
    themselves (address, shape, strides, version), never from names."""
    seen: list[Tensor] = []  # holds the tensors, so that no address is reused within the pass
    reads: dict[str, tuple] = {}  # all that a layer reads, a module may run more than once

    def look(name: str, x: Tensor) -> None:
        seen.append(x)
        key = (x.data_ptr(), x.shape, x.stride(), x._version, layers[name].row_key(), layers[name].width)
        reads[name] = (*reads.get(name, ()), key)

    classifier.model.eval()
    with input_hooks(readers(layers), look):
        classifier(to_unit(pixels, classifier.device))
    first: dict[tuple, str] = {}
    leaders = {name: first.setdefault(keys, name) for name, keys in reads.items()}
    tied = {name for name, layer in layers.items() if layer.sharers}
    return {name: leader for name, leader in leaders.items() if leader != name and not {name, leader} & tied}


@dataclass(frozen=True)
class Frame:
    """columns ``(groups, d_in, k)``, orthonormal; missed: share of the rows' energy outside of them, in [0, 1]."""

    columns: Tensor
    missed: float


def too_wide(layers: Layers, max_memory_gb: float) -> list[str]:
    """The layers that need a frame, widest first, until what is kept for the others (a float32 ``d_in x d_in`` matrix
    each) fits, and so does the float64 matrix of each while it is decomposed (three of them)."""
    kept = sum(4 * layer.groups * layer.d_in**2 for layer in layers.values()) / GIGABYTE
    wide = []
    for name, layer in sorted(layers.items(), key=lambda item: -item[1].d_in):
        alone = 3 * 8 * layer.d_in**2 / GIGABYTE
        if layer.d_in > FRAME_WIDTH and (kept > max_memory_gb or alone > max_memory_gb):
            wide.append(name)
            kept -= 4 * layer.groups * layer.d_in * (layer.d_in - FRAME_WIDTH) / GIGABYTE
    return wide


@torch.no_grad()
def find_frames(
    classifier: PixelClassifier,
    pixels: Tensor,
    layers: Layers,
    names: list[str],
    seed: int = 0,
    disable_progress: bool = True,
) -> dict[str, Frame]:
    """For the named layers a subspace that holds nearly all rows, of at most ``FRAME_WIDTH`` columns a group: the
    randomised range finder (Halko, Martinsson and Tropp 2011, algorithm 4.4), streamed, with one power iteration: three
    forward passes.

    Raises:
        UnlearningError: a layer's input is not finite on the images.
    """
    chosen = {name: replace(layers[name], frame=None) for name in names}
    shared = shared_inputs(classifier, chosen, pixels[:2])
    leaders = {name: layer for name, layer in chosen.items() if name not in shared}
    generator = torch.Generator().manual_seed(seed)
    columns = {
        name: torch.randn(layer.groups, layer.d_in, min(FRAME_WIDTH, layer.d_in), generator=generator)
        for name, layer in leaders.items()
    }
    for title in ("Wide layers: range", "Wide layers: power iteration"):
        products = {name: torch.zeros_like(c, device=classifier.device) for name, c in columns.items()}

        def multiply(name: str, rows: Tensor, _which: Tensor, products=products, columns=columns) -> None:
            products[name] += rows.mT @ (rows @ columns[name].to(rows))

        visit_inputs(classifier, pixels, leaders, multiply, title, disable_progress)
        sums = {name: finite(name, summed(product), len(pixels)) for name, product in products.items()}
        columns = {name: torch.linalg.qr(product).Q.cpu() for name, product in sums.items()}
    missed = energy_missed(classifier, pixels, leaders, columns, disable_progress)
    frames = {name: Frame(columns[name], missed[name]) for name in leaders}
    return {name: frames[shared.get(name, name)] for name in chosen}


@torch.no_grad()
def energy_missed(
    classifier: PixelClassifier, pixels: Tensor, layers: Layers, columns: Tensors, disable_progress: bool = True
) -> dict[str, float]:
    """Share of the rows' energy outside of the span of some columns ``(groups, d_in, k)``, in [0, 1], by layer."""
    energy = {name: zeros(classifier, 2) for name in columns}
    plain = {name: replace(layers[name], frame=None) for name in columns}

    def measure(name: str, rows: Tensor, _which: Tensor) -> None:
        inside = (rows @ columns[name].to(rows)).double().square().sum()
        energy[name] += torch.stack([inside, rows.double().square().sum()])

    visit_inputs(classifier, pixels, plain, measure, "Wide layers: error", disable_progress)
    shares = {name: summed(both).tolist() for name, both in energy.items()}
    return {name: max(0.0, 1 - inside / max(whole, TINY)) for name, (inside, whole) in shares.items()}


def framed(layers: Layers, frames: Mapping[str, Frame]) -> dict[str, Layer]:
    """The layers, with their frames, on their weights' device, where they have one."""
    return {
        name: replace(layer, frame=frames[name].columns.to(layer.weight)) if name in frames else layer
        for name, layer in layers.items()
    }
