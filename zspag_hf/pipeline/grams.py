"""Proxies -> one Gram matrix per weight, streamed.

Stacking every input row of every proxy, as eq. 3 reads, needs n x d numbers a layer. Its left singular vectors and
squared singular values are the eigenpairs of the d x d Gram matrix R R^T, which is summed batch by batch instead. Where
even that is too large, the rows are described in a subspace found by random projection (:func:`find_frames`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from .classifier import PixelClassifier, to_unit
from .layers import Layer

FRAME_WIDTH = 1024  # columns of a frame: more than the rank of any stack of 1,000 proxies with one row an image
GIGABYTE = 1e9
BATCH = 32  # images of a forward pass in which inputs of layers are turned into rows of float64


@torch.no_grad()
def collect_grams(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: dict[str, Layer],
    batch_size: int = BATCH,
    disable_progress: bool = True,
    max_memory_gb: float = float("inf"),
) -> dict[str, Tensor]:
    """Mean over labels of the trace-normalised Gram matrices of every layer's input.

    G = (1/K) sum_k R_k R_k^T / tr(R_k R_k^T): each class weighs the same, in any order, with one matrix a layer for any
    number of classes. This replaces the incremental merge of eq. 4 (see :func:`.subspaces.merge_class`); the
    ranks are the same on a small ViT. Two forward passes at least: the first measures the traces, which one class can
    do without, then one follows for each group of layers whose matrices fit in ``max_memory_gb`` together. Processes
    share the batches.

    Args:
        pixels: ``(N, channels, H, W)``, uint8 or float in [0, 1].
        labels: ``(N,)``, the class that each image stands for.
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
    shares = class_shares(classifier, pixels, labels, leaders, batch_size, disable_progress) if several else None
    grams: dict[str, Tensor] = {}
    for group in groups_within(leaders, max_memory_gb):
        sums = {n: zeros(classifier, layer.groups, layer.width, layer.width) for n, layer in group.items()}

        def accumulate(name, rows, which, sums=sums):
            rows = rows.double()
            if shares is not None:
                scale = shares[name][which].sqrt().to(rows).repeat_interleave(rows.shape[1] // len(which))
                rows = rows * scale[None, :, None]
            sums[name] += rows.mT @ rows

        visit_inputs(classifier, pixels, group, accumulate, batch_size, "Subspaces", disable_progress)
        for name, gram in sums.items():
            gram = summed(gram)
            trace = torch.einsum("gii->", gram)
            check_finite({name: trace}, len(pixels))
            gram = gram if several else gram / trace.clamp_min(1e-300)
            grams[name] = ((gram + gram.mT) / 2).cpu()
        del sums, accumulate
    return {name: grams[shared.get(name, name)] for name in layers}


def class_shares(classifier, pixels, labels, layers, batch_size, disable_progress) -> dict[str, Tensor]:
    """Layer name -> ``(N,)`` float64: 1 / (K tr(R_k R_k^T)) with k the image's class, what each of its rows weighs."""
    classes, index = labels.unique(return_inverse=True)
    traces = {name: zeros(classifier, len(classes)) for name in layers}

    def measure(name, rows, which):
        per_image = rows.double().square().sum(-1).sum(0).view(len(which), -1).sum(1)
        traces[name].index_add_(0, index[which].to(per_image.device), per_image)

    visit_inputs(classifier, pixels, layers, measure, batch_size, "Subspaces: traces", disable_progress)
    traces = {name: summed(trace).cpu() for name, trace in traces.items()}
    check_finite(traces, len(pixels))
    return {name: (1 / (len(classes) * trace.clamp_min(1e-300)))[index] for name, trace in traces.items()}


def check_finite(sums: dict[str, Tensor], images: int) -> None:
    """Refuse layers whose inputs do not add up to something finite.

    Raises:
        UnlearningError: it names the first one.
    """
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise UnlearningError(
                f"the input of layer {name!r} is not finite on {images} images: give a model with finite outputs."
            )


def zeros(classifier: PixelClassifier, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=classifier.device)


def groups_within(layers: dict[str, Layer], max_memory_gb: float) -> list[dict[str, Layer]]:
    """The layers in order, as many at a time as have their Gram matrices in so much memory; one at least."""
    groups, held = [{}], 0.0
    for name, layer in layers.items():
        size = 8 * layer.groups * layer.width**2 / GIGABYTE
        if groups[-1] and held + size > max_memory_gb:
            groups.append({})
            held = 0.0
        groups[-1][name] = layer
        held += size
    return groups


def visit_inputs(classifier, pixels, layers, visit, batch_size: int, title: str, disable_progress: bool) -> None:
    """Call ``visit(name, rows, which)`` on every layer's input of every batch of this process; ``which`` are the
    batch's images."""
    classifier.model.eval()
    for batch in tqdm(my_batches(len(pixels), batch_size), desc=title, disable=disable_progress):
        which = torch.arange(batch.start, batch.stop)
        with input_hooks(layers, lambda name, x, which=which: visit(name, layers[name].rows(x), which)):
            classifier(to_unit(pixels[batch], classifier.device))


@contextlib.contextmanager
def input_hooks(layers: dict[str, Layer], look):
    """Call ``look(name, input)`` on every input of every layer during a forward pass."""

    def hook(name):
        return lambda _module, args: look(name, args[0].detach())

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, layer in layers.items()
        for module in (layer.module, *layer.sharers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def shared_inputs(classifier: PixelClassifier, layers: dict[str, Layer], pixels: Tensor) -> dict[str, str]:
    """Follower -> leader for layers that read the same tensors, found by one forward pass on a few images.

    Read off the tensors themselves (address, shape, strides, version), never off names.
    """
    seen: list[Tensor] = []  # holds the tensors, so that no address is reused within the pass
    reads: dict[str, tuple] = {}  # all that a layer reads, a module may run more than once

    def look(name: str, x: Tensor) -> None:
        seen.append(x)
        key = (x.data_ptr(), x.shape, x.stride(), x._version, layers[name].row_key(), layers[name].width)
        reads[name] = (*reads.get(name, ()), key)

    classifier.model.eval()
    with input_hooks(layers, look):
        classifier(to_unit(pixels, classifier.device))
    leaders, shared = {}, {}
    for name, keys in reads.items():
        leader = leaders.setdefault(keys, name)
        if leader != name and not layers[name].sharers and not layers[leader].sharers:
            shared[name] = leader
    return shared


@dataclass(frozen=True)
class Frame:
    """columns ``(groups, d_in, k)``, orthonormal; missed: share of the rows' energy outside of them, in [0, 1]."""

    columns: Tensor
    missed: float


def too_wide(layers: dict[str, Layer], max_memory_gb: float) -> list[str]:
    """The layers that need a frame, widest first, until what is kept for the others (a float32 ``d_in x d_in`` matrix
    each) fits, and so does the float64 matrix of each while it is decomposed (three of them)."""
    kept = sum(4 * layer.groups * layer.d_in**2 for layer in layers.values()) / GIGABYTE
    found = []
    for name, layer in sorted(layers.items(), key=lambda item: -item[1].d_in):
        alone = 3 * 8 * layer.d_in**2 / GIGABYTE
        if layer.d_in > FRAME_WIDTH and (kept > max_memory_gb or alone > max_memory_gb):
            found.append(name)
            kept -= 4 * layer.groups * layer.d_in * (layer.d_in - FRAME_WIDTH) / GIGABYTE
    return found


@torch.no_grad()
def find_frames(
    classifier: PixelClassifier,
    pixels: Tensor,
    layers: dict[str, Layer],
    names: list[str],
    seed: int = 0,
    batch_size: int = BATCH,
    disable_progress: bool = True,
) -> dict[str, Frame]:
    """For wide layers a subspace that holds nearly all rows: the randomised range finder (Halko, Martinsson and Tropp
    2011, algorithm 4.4), streamed, with one power iteration: three forward passes.

    Args:
        names: layers to find one for. The others are not touched.

    Returns:
        layer name -> :class:`Frame` of at most ``FRAME_WIDTH`` columns a group.

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

        def multiply(name, rows, _which, products=products, columns=columns):
            products[name] += rows.mT @ (rows @ columns[name].to(rows))

        visit_inputs(classifier, pixels, leaders, multiply, batch_size, title, disable_progress)
        products = {name: summed(product) for name, product in products.items()}
        check_finite(products, len(pixels))
        columns = {name: torch.linalg.qr(product).Q.cpu() for name, product in products.items()}
    missed = energy_missed(classifier, pixels, leaders, columns, batch_size, disable_progress)
    frames = {name: Frame(columns[name], missed[name]) for name in leaders}
    return {name: frames[shared.get(name, name)] for name in chosen}


@torch.no_grad()
def energy_missed(
    classifier: PixelClassifier,
    pixels: Tensor,
    layers: dict[str, Layer],
    columns: dict[str, Tensor],
    batch_size: int = BATCH,
    disable_progress: bool = True,
) -> dict[str, float]:
    """Share of the rows' energy outside of the span of some columns ``(groups, d_in, k)``, in [0, 1], by layer."""
    energy = {name: zeros(classifier, 2) for name in columns}
    plain = {name: replace(layers[name], frame=None) for name in columns}

    def measure(name, rows, _which):
        inside = (rows @ columns[name].to(rows)).double().square().sum()
        energy[name] += torch.stack([inside, rows.double().square().sum()])

    visit_inputs(classifier, pixels, plain, measure, batch_size, "Wide layers: error", disable_progress)
    shares = {name: summed(both).tolist() for name, both in energy.items()}
    return {name: max(0.0, 1 - inside / max(whole, 1e-300)) for name, (inside, whole) in shares.items()}


def framed(layers: dict[str, Layer], frames: dict[str, Frame]) -> dict[str, Layer]:
    """The layers, with their frames, on their weights' device, where they have one."""
    placed = {name: frame.columns.to(layers[name].weight) for name, frame in frames.items()}
    return {name: replace(layer, frame=placed[name]) if name in placed else layer for name, layer in layers.items()}
