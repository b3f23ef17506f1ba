"""Gradients of the cross-entropy by any weights, in batches: of this process alone, or shared among all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..parallel.processes import my_batches, summed
from .classifier import PixelClassifier, gradient_batch, to_unit
from .layers import Layers


def logits_with(classifier: PixelClassifier, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """Logits ``(N, C)`` with weights in place of the model's, by their names in ``classifier.model``."""
    return functional_call(classifier, {f"model.{name}": weight for name, weight in weights.items()}, (pixels,))


def loss_gradient(
    classifier: PixelClassifier, pixels: Tensor, targets: Tensor, parameters: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """Gradient of (sum of cross-entropies) / count, in eval mode, of this process alone.

    Args:
        pixels: ``(N, channels, H, W)``, uint8 or float in [0, 1].
        targets: labels ``(N,)``, or distributions ``(N, C)``.
        parameters: what to differentiate by, under the names of ``classifier.model.named_parameters()``.

    Returns:
        The same names -> tensors of the same shapes; zeros where the loss does not depend on a parameter.
    """
    classifier.model.eval()
    weights = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    at_once = gradient_batch(pixels)
    for x, y in zip(pixels.split(at_once), targets.split(at_once), strict=True):
        with torch.enable_grad():
            logits = logits_with(classifier, weights, to_unit(x, classifier.device))
            loss = F.cross_entropy(logits, y.to(logits.device), reduction="sum") / count
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient
    return total


def mean_gradient(
    classifier: PixelClassifier, pixels: Tensor, targets: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """:func:`loss_gradient` of the mean over all images, their batches shared among the processes: all call it."""
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for rows in my_batches(len(pixels), gradient_batch(pixels)):
        mine = loss_gradient(classifier, pixels[rows], targets[rows], parameters, len(pixels))
        for name, part in mine.items():
            total[name] += part
    return {name: summed(part) for name, part in total.items()}  # eq. 8: nabla L(D_r), with proxies for D_r


def layer_gradients(classifier: PixelClassifier, pixels: Tensor, targets: Tensor, layers: Layers) -> dict[str, Tensor]:
    """:func:`mean_gradient` by the weights of some layers: layer name -> tensor shaped as its weight."""
    weights = {f"{name}.weight": layer.weight for name, layer in layers.items()}
    gradients = mean_gradient(classifier, pixels, targets, weights)
    return {name: gradients[f"{name}.weight"] for name in layers}


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Run attention through the math kernel, the one that has forward-mode derivatives and vmap; restored on exit."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
