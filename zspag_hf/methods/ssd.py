"""SSD, selective synaptic dampening (arXiv 2308.07707): weights that matter to the forget images alone are damped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from ..pipeline.gradients import loss_gradient
from .options import Confined, OptionalRetained
from .plan import Plan
from .run import Run
from .stages import gather_proxies, proxy_facts

ALPHA, LAMBDA = 10.0, 1.0  # the paper's for ResNet-18, and for ViT where single images are forgotten
IMPORTANCE_BATCH = 64  # images that a gradient is averaged over before it is squared: the published code's default


def batches(labels: Tensor, by_class: bool, seed: int) -> list[Tensor]:
    """Rows of batches of ``IMPORTANCE_BATCH`` images at most: of one class each, or of a random order."""
    if by_class:
        parts = [(labels == k).nonzero().squeeze(1) for k in labels.unique()]
    else:
        parts = [torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return [rows for part in parts for rows in part.split(IMPORTANCE_BATCH)]


def importance(
    classifier, pixels: Tensor, labels: Tensor, rows: list[Tensor], disable_progress: bool = True
) -> dict[str, Tensor]:
    """Mean over batches of (gradient of the batch's mean cross-entropy)^2 by every parameter, on the CPU, as published.

    That is the diagonal Fisher information for batches of one image alone; the more images a batch has, and the more of
    their classes, the less of it is left. Processes share the batches.

    Args:
        rows: of each batch, from :func:`batches`.
    """
    parameters = dict(classifier.model.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for one in tqdm(my_batches(len(rows), 1), desc="Importance", disable=disable_progress):
        mine = rows[one.start]
        for name, gradient in loss_gradient(classifier, pixels[mine], labels[mine], parameters, len(mine)).items():
            total[name] += gradient.square() / len(rows)
    return {name: summed(part).cpu() for name, part in total.items()}


@torch.no_grad()
def dampen(
    parameters: Mapping[str, Tensor],
    of_data: dict[str, Tensor],
    of_forget: dict[str, Tensor],
    alpha: float,
    strength: float,
    share: float,
) -> int:
    """theta <- theta x min(lambda I_D / I_f, 1) where I_f > alpha I_r (eq. 5 and 6), in place; every other entry stays
    bit by bit. I_D is the importance to all data, (1 - share) I_r + share I_f.

    Args:
        parameters: name -> tensor. of_data, of_forget: the same names -> I_r, of the data without the forget images,
            and I_f. strength: lambda. share: of the forget images in all data, in [0, 1].

    Returns:
        How many entries were chosen.
    """
    chosen = 0
    for name, parameter in parameters.items():
        mine, forget = (part[name].to(parameter) for part in (of_data, of_forget))
        where = forget > alpha * mine
        whole = (1 - share) * mine[where] + share * forget[where]  # I_D
        parameter[where] *= (strength * whole / forget[where]).clamp(max=1)
        chosen += int(where.sum())
    return chosen


def movable(run: Run) -> dict[str, torch.nn.Parameter]:
    """The parameters that an edit may write to: all, or under a constraint the weights that it confines."""
    named, names = dict(run.model.named_parameters()), run.made.trainable
    if names is None:
        return named
    weights = {id(run.layers[name].weight) for name in names}
    return {name: parameter for name, parameter in named.items() if id(parameter) in weights}


@dataclass(kw_only=True)
class SSD(Confined, OptionalRetained):
    """One pass over other data, one over the forget images, no training: entries whose importance to the forget images,
    I_f, exceeds alpha = 10 times that to the other data, I_r, are multiplied by lambda I_D / I_f (lambda = 1).

    With ``with_retain`` the other data are the retained images. Without, proxies stand for them, as METHODS proposes;
    the paper has no such form (it stores importances before the data are gone). I_D is the paper's, over all data:
    (1 - s) I_r + s I_f, s the share of the forget images, by count, or without retained data that of the forgotten
    classes among all. So an entry keeps the share s of itself at least; I_r alone would leave it next to nothing. What
    is chosen is told by I_r: by I_D nothing is where s is 1/alpha or more, as of ten balanced classes. The paper's rule
    at alpha / (1 + s (alpha - 1)) chooses what ours does at alpha: 10 is then 5.3 for s = .1, and its code has 5 for a
    ViT that forgets classes. (50 and lambda .1 for faces.)

    Where classes are forgotten a batch holds one class, as nearly all do in the published code, whose data come class
    by class: in mixed batches classes cancel out, I_D is far too small, and the damping ruins the model (measured on
    CIFAR-10). Where images are, batches are mixed; the code has 128 images in those.

    Proxies lie near a boundary, so their gradients are larger than retained images': on a model that fits the forget
    images to the last, little or nothing is damped without retained data.
    """

    description: ClassVar[str] = (
        "SSD ([arXiv 2308.07707](https://arxiv.org/abs/2308.07707)): weights that matter far more to the forget images"
        " than to the other data are damped, without training."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")
    trains: ClassVar[bool] = False
    loops: ClassVar[bool] = False

    @property
    def makes_proxies(self) -> bool:
        """For the constraint, or in place of retained data."""
        return super().makes_proxies or not self.with_retain

    def prepare(self, run: Run) -> Plan:
        """An edit alone: the dampening."""
        forget, plan = run.forget, Plan(None, None, None)
        others, labels = self.data(run, plan)
        of_data = self.importance(run, "importance_of_data", others, labels)
        of_forget = self.importance(run, "importance_of_forget_set", forget.pixels, forget.labels)

        share = len(run.class_ids) / run.classifier.num_labels
        if run.retained is not None:
            share = len(forget) / (len(forget) + len(others))

        def edit():
            if not dampen(movable(run), of_data, of_forget, ALPHA, LAMBDA, share):
                raise UnlearningError(
                    f"no weight matters more than {ALPHA:g} times as much to the forget images as to the other data, so"
                    " there is nothing to damp: give another method."
                )

        plan.edit = edit
        return plan

    def data(self, run: Run, plan: Plan) -> tuple[Tensor, Tensor]:
        """Images and labels of the other data, or what stands for them."""
        retain = run.retained
        if retain is not None:
            return retain.pixels, retain.labels
        proxies = gather_proxies(run, self)
        plan.facts["proxies"] = proxy_facts(run, proxies)
        return proxies.pixels, proxies.labels

    def importance(self, run: Run, name: str, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The stage ``name``."""
        rows = batches(labels, bool(run.class_ids), run.seed)

        def make():
            return importance(run.classifier, pixels, labels, rows, run.quiet), {}

        return run.stage(name, make, under="importance")[0]
