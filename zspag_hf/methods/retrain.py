"""Retraining without what is to be forgotten: the reference of every other method (METHODS C.1)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ..config import option
from ..errors import UnlearningError
from ..hub.adapter import ModuleClassifier
from ..parallel.processes import rank_and_size
from .options import Retained, Trained
from .plan import Plan
from .run import Run

PADDED = 8  # sides of the image in the padding of a random crop: 4 pixels of 32


def check_renewable(model: PreTrainedModel) -> None:
    """Refuse a model whose first weights cannot be drawn anew from its config.

    Raises:
        UnlearningError: code of its own, or a plain module that does not say how it begins.
    """
    kind = type(model)
    if kind.__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME:
        raise UnlearningError(
            f"a {kind.__name__} comes with code of its own, which may load weights where new ones are drawn: give a"
            " model that transformers knows, or a ModuleClassifier around the network."
        )
    if not isinstance(model, ModuleClassifier):
        return
    for name, module in model.module.named_modules():
        if list(module.parameters(recurse=False)) and redrawn(module) is None:
            raise UnlearningError(
                f"the layer {name!r} ({type(module).__name__}) does not say how its first weights are drawn: give it a"
                " method called reset_parameters, as torch's own layers have."
            )


def redrawn(module: nn.Module):
    """torch's protocol for first weights, as FSDP uses it; None where a module does not follow it."""
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def renewed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same class and config with first weights drawn by ``seed``, on the CPU, in train mode.

    A plain module is copied and its layers draw their weights by torch's defaults, not by its constructor's.

    Raises:
        UnlearningError: from :func:`check_renewable`.
    """
    check_renewable(model)
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(model, ModuleClassifier):
            return type(model)(config).float().train()
        module = copy.deepcopy(model.module).cpu()
        for part in reversed(list(module.modules())):  # a network with a scheme of its own has the last word
            if (redraw := redrawn(part)) is not None:
                redraw()
        return type(model)(config, module).float().requires_grad_(True).train()


def augmented(pixels: Tensor, draws: Tensor) -> Tensor:
    """Random crops of images padded with black, an eighth of their sides, mirrored half of the time.

    Args:
        pixels: ``(n, channels, H, W)``. draws: ``(n, 3)`` in [0, 1): top, left, and mirrored above a half.
    """
    height, width = pixels.shape[2:]
    ph, pw = (max(1, round(side / PADDED)) for side in (height, width))
    draws = draws.to(pixels.device)
    rows = (draws[:, :1] * (2 * ph + 1)).long() + torch.arange(height, device=pixels.device)
    across = torch.arange(width, device=pixels.device).expand(len(pixels), -1)
    across = torch.where(draws[:, 2:] > 0.5, width - 1 - across, across)
    columns = (draws[:, 1:2] * (2 * pw + 1)).long() + across
    padded = F.pad(pixels, (pw, pw, ph, ph))
    images = torch.arange(len(pixels), device=pixels.device)
    return padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(kw_only=True)
class Retrain(Retained, Trained):
    """Training from new weights on the retained images alone; the model keeps all its outputs.

    Every parameter trains, in train mode, with random crops and mirroring. The published recipe for convolutional
    networks is SGD at .1, momentum .9, weight decay 5e-4, steps down, with early stopping; a transformer does not learn
    by it. Options are set by the number of labels alone, so both get AdamW at 1e-3 with weight decay .05, by which both
    learn: for the other recipe give ``optim="sgd", optim_args="momentum=0.9", learning_rate=0.1, weight_decay=5e-4``
    and a ``lr_scheduler_type``. 100 epochs up to 20 labels and 200 above, as that recipe has for CIFAR-10 and
    CIFAR-100; nothing stops early, since nothing is held out.

    Crops and mirroring are drawn from seed and step, for whole global batches. Batch norm and dropout in train mode see
    each process's own rows, so a network with either depends on the number of processes.
    """

    description: ClassVar[str] = (
        "Retraining: new weights, trained on retained images alone; what the other methods try to equal."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    learning_rate: float | None = option(1e-3, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(None, "Unset: 100 up to 20 labels, 200 above.", above=0)
    optim: str = option("adamw_torch", "Optimizer, as transformers names it.")
    weight_decay: float = option(0.05, "Of the optimizer.", least=0)

    def published(self, num_labels: int) -> dict:
        """By whether there are 20 labels or fewer."""
        return {"num_train_epochs": 100 if num_labels <= 20 else 200}

    def check_model(self, run: Run) -> None:
        """Refuse a model whose first weights cannot be drawn."""
        check_renewable(run.model)

    def prepare(self, run: Run) -> Plan:
        """The retained images, from new weights."""
        retain, self.step, self.within = run.kept, -1, 0

        def edit():
            run.model.load_state_dict(renewed(run.model, run.seed).state_dict())
            set_seed(run.seed)  # of dropout: the same whatever else was made in this process before

        targets = F.one_hot(retain.labels, run.classifier.num_labels).float()
        return Plan(retain.pixels, targets, None, edit=edit, train_mode=True)

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Cross-entropy on augmented images."""
        pixels, (rank, size) = inputs["pixels"], rank_and_size()
        draws = self.draws(run, run.args.per_device_train_batch_size * size)[rank::size]
        if len(pixels) == 1:
            model.eval()  # one image has no statistics of its own; the next step is in train mode again
        changed = augmented(pixels, draws[: len(pixels)])
        return super().compute_loss(run, model, {**inputs, "pixels": changed})

    def draws(self, run: Run, count: int) -> Tensor:
        """Three numbers in [0, 1) for each row of the global batch, by seed, step and batch within the step."""
        step = run.state.global_step
        self.within = self.within + 1 if step == self.step else 0
        self.step = step
        seed = np.random.SeedSequence([run.seed, step, self.within]).generate_state(1, np.uint64)
        return torch.rand(count, 3, generator=torch.Generator().manual_seed(int(seed[0])))
