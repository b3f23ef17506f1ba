"""Influence of training on (x, label k) upon the proxies' loss, for every label at once (eq. 7-10).

With g the gradient of the proxies' mean loss, H a damped curvature and v = (H + lambda I)^-1 g, the first-order
change of
the proxies' loss when (x, y) is upweighted by epsilon is -epsilon v . grad l(x, y) (eq. 9). The soft cross-entropy is
linear in y: v . grad l(x, y) = sum_k y_k a_k with a_k = -v . grad log p_k(x), so one forward-mode derivative of log
p(x) along v gives all C influences (the literal form takes one backward pass a label).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ..parallel.processes import my_batches, summed
from .classifier import PixelClassifier, frozen, gradient_batch, to_unit
from .layers import Layer

Vector = dict[str, Tensor]  # layer name -> tensor shaped as its weight


@contextlib.contextmanager
def math_attention():
    """Run attention through the math kernel, the one that has forward-mode derivatives; restored on exit."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def weights_of(layers: dict[str, Layer]) -> Vector:
    return {name: layer.weight.detach() for name, layer in layers.items()}


def functional(classifier: PixelClassifier, weights: Vector, x: Tensor) -> Tensor:
    """Logits ``(N, C)`` of the classifier with the named weights replaced."""
    return functional_call(classifier, {f"model.{name}.weight": w for name, w in weights.items()}, (x,))


def mean_gradient(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    layers: dict[str, Layer],
    batch_size: int | None = None,
) -> Vector:
    """Gradient of the mean cross-entropy at (pixels, labels), the nabla L(D_r) of eq. 8 with proxies for D_r."""
    classifier.model.eval()
    total = {name: torch.zeros_like(w) for name, w in weights_of(layers).items()}
    for rows in my_batches(len(pixels), batch_size or gradient_batch(pixels)):
        x, y = to_unit(pixels[rows], classifier.device), labels[rows].to(classifier.device)

        def loss(logits, y=y):
            return F.cross_entropy(logits, y, reduction="sum") / len(pixels)

        weights = {name: w.requires_grad_() for name, w in weights_of(layers).items()}
        with torch.enable_grad():
            grads = torch.autograd.grad(
                loss(functional(classifier, weights, x)), list(weights.values()), allow_unused=True
            )
        for name, grad in zip(weights, grads, strict=True):
            if grad is not None:
                total[name] += grad
    return {name: summed(part) for name, part in total.items()}


def gauss_newton_product(
    classifier: PixelClassifier, pixels: Tensor, layers: dict[str, Layer], batch_size: int | None = None
) -> Callable[[Vector], Vector]:
    """u -> G u, G = mean over images of J^T (diag p - p p^T) J: positive semi-definite, unlike the Hessian of a
    network."""
    classifier.model.eval()
    weights = weights_of(layers)

    def product(u: Vector) -> Vector:
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for rows in my_batches(len(pixels), batch_size or gradient_batch(pixels)):
            x = to_unit(pixels[rows], classifier.device)
            with math_attention():
                logits, along = jvp(lambda w, x=x: functional(classifier, w, x), (weights,), (u,))
                p = logits.softmax(1)
                curved = p * along - p * (p * along).sum(1, keepdim=True)
                back = vjp(lambda w, x=x: functional(classifier, w, x), weights)[1]
                (piece,) = back(curved / len(pixels))
            for name in total:
                total[name] += piece[name].detach()
        return {name: summed(part) for name, part in total.items()}

    return product


def dot(a: Vector, b: Vector) -> float:
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))


def combine(a: Vector, b: Vector, scale: float) -> Vector:
    """a + scale b."""
    return {name: a[name] + scale * b[name] for name in a}


def conjugate_gradients(product, g: Vector, damping: float, steps: int = 20, tolerance: float = 1e-4) -> Vector:
    """Solve (G + damping I) v = g; stops at a relative residual of ``tolerance``."""
    v = {name: torch.zeros_like(x) for name, x in g.items()}
    residual, direction, rr = dict(g), dict(g), dot(g, g)
    for _ in range(steps):
        if rr <= tolerance**2 * dot(g, g):
            break
        curved = combine(product(direction), direction, damping)
        alpha = rr / dot(direction, curved)
        v, residual = combine(v, direction, alpha), combine(residual, curved, -alpha)
        rr, previous = dot(residual, residual), rr
        direction = combine(residual, direction, rr / previous)
    return v


def lissa(product, g: Vector, damping: float, steps: int = 100) -> Vector:
    """v_{t+1} = g + (I - (G + damping I) / scale) v_t, then v / scale (Agarwal et al. 2017; Koh and Liang 2017).

    The scale has to exceed the largest eigenvalue; it is found by ten power iterations, where published code leaves it
    to the user, who sees a divergence when it is too small.
    """
    u = dict(g)
    for _ in range(10):
        u = combine(product(u), u, damping)
        norm = dot(u, u) ** 0.5
        u = {name: x / norm for name, x in u.items()}
    curved = combine(product(u), u, damping)
    scale = 1.1 * dot(curved, u) / dot(u, u)
    v = dict(g)
    for _ in range(steps):
        v = combine(combine(v, combine(product(v), v, damping), -1 / scale), g, 1.0)
    return {name: x / scale for name, x in v.items()}


def kfac(
    classifier: PixelClassifier,
    pixels: Tensor,
    layers: dict[str, Layer],
    grams: dict[str, Tensor],
    g: Vector,
    damping: float,
    batch_size: int | None = None,
    seed: int = 0,
) -> Vector:
    """v = (B + damping)^-1 g (A + damping)^-1 a layer, A the Gram matrices at hand, B the output-gradient factor.

    B is estimated in one backward pass with labels drawn from the model (Martens and Grosse 2015). Both factors are
    scaled to a mean eigenvalue of 1 first, so v is right up to one factor a layer, and the damping is relative.
    """
    factors = output_gradient_factors(classifier, pixels, layers, batch_size, seed)
    solved = {}
    for name, layer in layers.items():
        matrix = layer.matrix(g[name])
        a = unit_mean(grams[name].to(matrix), layer.d_in)
        b = unit_mean(factors[name].to(matrix), factors[name].shape[-1])
        left = torch.linalg.solve(b + damping * torch.eye(b.shape[-1]).to(matrix), matrix)
        both = divided(layer, left, a, damping)
        out = torch.empty_like(g[name])
        layer.matrix(out).copy_(both)
        solved[name] = out
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


def output_gradient_factors(classifier, pixels, layers, batch_size=None, seed=0) -> dict[str, Tensor]:
    """Layer name -> ``(groups, out/groups, out/groups)``, the second moment of the loss gradient at its output."""
    classifier.model.eval()
    factors = {}
    for name, layer in layers.items():  # zeros stay for a layer whose output does not reach the logits
        groups, width, _ = layer.matrix(layer.weight).shape
        factors[name] = layer.weight.new_zeros(groups, width, width)

    def look(name: str, layer: Layer):
        def hook(_module, _inputs, output):
            def on_gradient(grad: Tensor):
                if grad.dim() == 4 and layer.module.weight.dim() == 4:
                    grad = grad.movedim(1, -1)
                grad = grad.reshape(-1, layer.groups, grad.shape[-1] // layer.groups).movedim(0, 1)
                factors[name] = factors[name] + grad.mT @ grad

            if output.requires_grad:
                output.register_hook(on_gradient)

        return hook

    hooks = [layer.module.register_forward_hook(look(name, layer)) for name, layer in layers.items()]
    try:
        with frozen(classifier.model):
            for rows in my_batches(len(pixels), batch_size or gradient_batch(pixels)):
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
    classifier: PixelClassifier,
    pixels: Tensor,
    v: Vector,
    layers: dict[str, Layer],
    batch_size: int | None = None,
    disable_progress: bool = True,
) -> Tensor:
    """a_ik = -v . grad log p_k(x_i), ``(N, C)`` on the CPU: one forward-mode derivative along v a batch (eq. 9).

    Training on (x_i, k) changes the proxies' loss by -epsilon a_ik to first order: to first order and at once, a
    larger a_ik is a better label (see :func:`zspag_hf.pipeline.pseudo_labels.pseudo_labels` on the sign).
    """
    classifier.model.eval()
    weights, out = weights_of(layers), torch.zeros(len(pixels), classifier.num_labels)
    for rows in tqdm(
        my_batches(len(pixels), batch_size or gradient_batch(pixels)), desc="Influence", disable=disable_progress
    ):
        x = to_unit(pixels[rows], classifier.device)
        with math_attention(), torch.no_grad():
            _, along = jvp(lambda w, x=x: functional(classifier, w, x).log_softmax(1), (weights,), (v,))
        out[rows] = -along.float().cpu()
    return summed(out)


SOLVERS = ("identity", "cg", "lissa", "kfac")


def inverse_hessian_product(
    solver: str,
    classifier: PixelClassifier,
    pixels: Tensor,
    layers: dict[str, Layer],
    grams: dict[str, Tensor],
    g: Vector,
    damping: float,
    batch_size: int | None = None,
    seed: int = 0,
) -> Vector:
    """v of eq. 7-9 by one of ``SOLVERS``; identity takes v = g.

    Args:
        damping: for cg and lissa in units of the loss curvature, for kfac relative to the mean eigenvalue.
    """
    if solver == "identity":
        return g
    if solver == "kfac":
        return kfac(classifier, pixels, layers, grams, g, damping, batch_size, seed)
    product = gauss_newton_product(classifier, pixels, layers, batch_size)
    return {"cg": conjugate_gradients, "lissa": lissa}[solver](product, g, damping)
