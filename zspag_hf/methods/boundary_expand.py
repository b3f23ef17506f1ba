"""Boundary expanding (Chen et al., CVPR 2023; METHODS C.7): a class more for the forget images, taken away again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..adaptive.head import head_inputs
from ..config import option
from ..errors import UnlearningError
from ..parallel.processes import rank_and_size, summed
from .options import Confined, Trained
from .plan import Plan
from .run import Run


class ExtraNeuron(TrainerCallback, ExportableState):
    """One more row of the head, outside of the model: nothing has to be cut off at the end, and no file holds it but
    the state of a checkpoint's run.

    It has an optimizer of its own, of the kind that the options name, which steps with the model's at the same rate:
    the same as one optimizer over both, for every optimizer that treats parameters apart.

    Args:
        d_in: width of the head's input. num_labels: rows that the head has. bias: whether it has biases.
    """

    def __init__(self, d_in: int, num_labels: int, bias: bool, args):
        generator = torch.Generator().manual_seed(args.seed)
        scale = (2 / (d_in + num_labels + 1)) ** 0.5  # Xavier normal over the wider head, as the published code
        weight = torch.randn(1, d_in, generator=generator) * scale
        self.weight = weight.to(args.device).requires_grad_()
        self.bias = torch.zeros(1, device=args.device, requires_grad=True) if bias else None
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        groups = [{"params": [self.weight], "weight_decay": args.weight_decay}]
        groups += [{"params": [self.bias], "weight_decay": 0.0}] if bias else []  # Trainer decays no bias either
        self.optimizer = kind(groups, **options)

    def __call__(self, features: Tensor) -> Tensor:
        """The head's inputs ``(n, d_in)`` -> logits ``(n, 1)``."""
        return F.linear(features, self.weight, self.bias).float()

    @property
    def parameters(self) -> list[Tensor]:
        """Row and bias."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def before_step(self, optimizer, *_):
        """Its own step, at the model's rate; gradients are averaged over processes as the model's are."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = summed(parameter.grad) / rank_and_size()[1]
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]  # which a schedule may have changed
        self.optimizer.step()
        self.optimizer.zero_grad()

    def after_step(self, *_):
        """Nothing to correct."""

    def state(self) -> dict:
        """Row, bias and what the optimizer knows of them, in the form that Trainer writes: float32 survives JSON."""
        steps = self.optimizer.state_dict()["state"]
        kept = {str(i): {name: written(value) for name, value in one.items()} for i, one in steps.items()}
        values = [parameter.tolist() for parameter in self.parameters]
        return {"args": {}, "attributes": {"values": values, "steps": kept}}

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **_):
        """On resuming, row, bias and the optimizer's state from the checkpoint."""
        if not state.global_step:
            return
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        for parameter, values in zip(self.parameters, saved["values"], strict=True):
            parameter.copy_(torch.tensor(values))
        steps = {int(i): {name: read(value) for name, value in one.items()} for i, one in saved["steps"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": steps})


def written(value):
    """A value of the optimizer's state as JSON holds it."""
    return {"tensor": value.tolist()} if isinstance(value, Tensor) else value


def read(value):
    """The other way round."""
    return torch.tensor(value["tensor"]) if isinstance(value, dict) else value


@dataclass(kw_only=True)
class BoundaryExpand(Confined, Trained):
    """Cross-entropy to an output neuron that is added for the forget images, trained with every parameter of the model,
    and then dropped: the head keeps its shape and its rows the values that they had beside the extra one.

    Settings: SGD at 1e-5 with momentum .9 for ten epochs, as in the published code. Batch norm keeps its statistics,
    where the code trains in train mode. Where a model averages two heads (DeiT and LeViT with a teacher), the neuron
    reads the last one's input. The neuron is kept in checkpoints, and nowhere else.
    A soft or hard constraint leaves the neuron free.
    """

    description: ClassVar[str] = (
        "Boundary expanding ([arXiv 2303.11570](https://arxiv.org/abs/2303.11570)): fine-tuning on the forget images as"
        " a class of their own, whose output is then dropped."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    learning_rate: float | None = option(1e-5, "Of the optimizer.", above=0)
    optim_args: str | None = option("momentum=0.9", "Of the optimizer.")

    def check_model(self, run: Run) -> None:
        """Refuse a model without a head."""
        if run.head is None:
            raise UnlearningError(
                f"no layer of the model has one output for each of its {run.classifier.num_labels} labels, so"
                " method='boundary_expand' has no head to add one to: give method='boundary_shrink'."
            )

    def prepare(self, run: Run) -> Plan:
        """The forget images, with the extra class as their label."""
        forget, count = run.forget, run.classifier.num_labels
        assert run.head is not None
        head = run.layers[run.head]
        self.neuron = ExtraNeuron(head.d_in, count, head.module.bias is not None, run.args)
        new_class = torch.full((len(forget),), count)
        plan = Plan(forget.pixels, F.one_hot(new_class, count + 1).float(), None)
        plan.keepers.append(self.neuron)
        plan.callbacks.append(self.neuron)
        return plan

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Cross-entropy over the wider head."""
        with head_inputs(run.layers[run.head or ""]) as features:
            logits = self.logits(run, model, inputs["pixels"])
        wider = torch.cat([logits, self.neuron(features[0])], 1)
        return (inputs["weights"] * F.cross_entropy(wider, inputs["targets"], reduction="none")).sum()
