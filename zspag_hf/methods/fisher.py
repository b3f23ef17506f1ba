"""Fisher forgetting (arXiv 1911.04933): noise on every weight, the more the less the retained data need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from ..pipeline.classifier import GRADIENT_BATCH, to_unit
from ..pipeline.grams import GIGABYTE
from ..pipeline.influence import math_attention
from ..pipeline.layers import Layer
from .options import Confined, Retained
from .plan import Plan
from .run import Run
from .ssd import movable

NUGGET = 1e-8  # added to the Fisher information before it is inverted
MOST, MOST_OF_HEAD = 1e3, 1e2  # bounds on the inverse
RAISED = 10.0  # factor on the variance of the head, and of vectors (biases, norms)
FORGOTTEN_VARIANCE = 1e-4  # of the forgotten classes' rows, before that factor


def samples_at_once(classifier, max_memory_gb: float) -> int:
    """Images whose gradients fit in so much memory together: of each there are the square and one of a class."""
    of_one = 2 * 4 * sum(parameter.numel() for parameter in classifier.model.parameters()) / GIGABYTE
    return max(1, min(GRADIENT_BATCH, int(max_memory_gb / of_one)))


@torch.no_grad()
def fisher_diagonal(
    classifier, pixels: Tensor, batch_size: int = GRADIENT_BATCH, disable_progress: bool = True
) -> dict[str, Tensor]:
    """Mean over images of sum_y p_y(x) (grad log p_y(x))^2 by every parameter, on the CPU: exact, of each image and
    each class a gradient of its own, in eval mode. Processes share the batches.

    Args:
        pixels: ``(N, channels, H, W)``, no labels: the expectation is over the model's own.
        batch_size: images at once; as many gradients are held.
    """
    classifier.model.eval()
    weights = {f"model.{name}": p.detach() for name, p in classifier.model.named_parameters()}
    classes = torch.eye(classifier.num_labels, device=classifier.device)

    def of_image(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        def log_p(weights):
            return functional_call(classifier, weights, (x[None],)).log_softmax(1)[0]

        answer, pull = vjp(log_p, weights)[:2]
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for k, one in enumerate(classes.to(answer)):
            for name, gradient in pull(one)[0].items():
                total[name] = total[name] + answer[k].exp() * gradient.square()
        return total

    total = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    for rows in tqdm(my_batches(len(pixels), batch_size), desc="Fisher information", disable=disable_progress):
        with math_attention():  # vmap knows no other kernel's derivative
            squares = vmap(of_image, (None, 0))(weights, to_unit(pixels[rows], classifier.device))
        for name, part in squares.items():
            total[name] += part.sum(0) / len(pixels)
    return {name.removeprefix("model."): summed(part).cpu() for name, part in total.items()}


def variances(
    fisher: dict[str, Tensor], layers: dict[str, Layer], head: str, class_ids: list[int], alpha: float
) -> dict[str, Tensor]:
    """Variance of the noise on every parameter's entries: alpha / F, bounded, and the mean of it over a weight's
    inputs; raised in the head and in vectors, and fixed in the forgotten classes' rows.

    Args:
        fisher: parameter name -> its diagonal Fisher information. head: a name among ``layers``.
    """
    spread = {}
    for name, information in fisher.items():
        in_head = name in (f"{head}.weight", f"{head}.bias")
        variance = alpha * (1 / (information + NUGGET)).clamp(max=MOST_OF_HEAD if in_head else MOST)
        if variance.dim() > 1:
            layer = layers.get(name.removesuffix(".weight"))
            inputs = 0 if layer is not None and isinstance(layer.module, Conv1D) else 1
            variance = variance.mean(inputs, keepdim=True).expand_as(variance).clone()
        if in_head:
            class_rows(layers[head], variance)[class_ids] = FORGOTTEN_VARIANCE
        spread[name] = variance * (RAISED if in_head or variance.dim() == 1 else 1.0)
    return spread


def class_rows(head: Layer, tensor: Tensor) -> Tensor:
    """One row a class: a view of the head's weight, or of its bias, or of something of the same shape."""
    return tensor if tensor.dim() == 1 else head.matrix(tensor).flatten(0, 1)


@dataclass(kw_only=True)
class Fisher(Confined, Retained):
    """theta <- theta + noise, its variance alpha / (diagonal Fisher information of the retained images), in closed
    form: no training. The head's rows of the forgotten classes begin at 0.

    Bounds and factors are the published code's, which the paper does not give: 1 / (F + 1e-8) at most 1e3, and 1e2 in
    the head; averaged over a weight's inputs; ten times as much in the head and in vectors; 1e-4 in the rows of the
    forgotten classes. The code takes every tensor with as many rows as there are classes for the head; here it is the
    layer that is one. alpha: 1e-7 up to 20 classes, 1e-8 for more, as in UNSC's runs of this method (the code's 1e-6 is
    for small networks on few images). F is exact: the square of each image's gradient, for each class, where UNSC
    squares means over batches, which makes F too small.

    The cost is one backward pass for each image and class; ``max_retain_samples`` bounds it.
    """

    description: ClassVar[str] = (
        "Fisher forgetting ([arXiv 1911.04933](https://arxiv.org/abs/1911.04933)): noise on every weight, the more the"
        " less the retained data depend on it."
    )
    trains: ClassVar[bool] = False
    loops: ClassVar[bool] = False

    def check_model(self, run: Run) -> None:
        """Refuse a model without a head."""
        if run.head is None:
            raise UnlearningError(
                f"method='fisher' resets the forgotten classes' rows of the head, and no layer of the model has one"
                f" output for each of its {run.classifier.num_labels} labels: give another method."
            )

    def prepare(self, run: Run) -> Plan:
        """An edit alone: the noise, drawn by the seed."""
        classifier, head = run.classifier, run.head
        assert head is not None, "check_model refused the model"
        pixels = run.kept.pixels

        def make():
            at_once = samples_at_once(classifier, run.args.max_memory_gb)
            return fisher_diagonal(classifier, pixels, at_once, run.quiet), {}

        fisher, _ = run.stage("fisher", make)
        alpha = 1e-7 if classifier.num_labels <= 20 else 1e-8

        @torch.no_grad()
        def edit():
            class_ids = run.class_ids
            spread = variances(fisher, run.layers, head, class_ids, alpha)
            generator, may_move = torch.Generator().manual_seed(run.seed), movable(run)
            for name, parameter in run.model.named_parameters():  # in the model's order, not in the stage's
                noise = torch.randn(parameter.shape, generator=generator) * spread[name].sqrt()
                if name not in may_move:
                    continue
                if name in (f"{head}.weight", f"{head}.bias"):
                    class_rows(run.layers[head], parameter)[class_ids] = 0
                parameter += noise.to(parameter)

        return Plan(None, None, None, edit=edit)
