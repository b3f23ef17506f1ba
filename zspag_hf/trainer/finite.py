"""Where a run stopped being finite: the step and the layer."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UnlearningError
from ..pipeline.layers import Layer


def not_finite(trainer, inputs: dict, own: bool = True) -> UnlearningError:
    """The error for a loss that is not finite, with the step and the first layer where that shows.

    Args:
        inputs: the batch, as the method's ``compute_loss`` got it. own: whether it is this process's loss.
    """
    step, model = trainer.state.global_step, trainer.model
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    where = f"its parameter {broken[0]!r} no longer is" if broken else "another process tells in which layer"
    if own and not broken:
        where = first_output(trainer, inputs)
    return UnlearningError(
        f"the loss is not finite at step {step}: {where}. Lower learning_rate ({trainer.args.learning_rate}), or leave"
        " it unset to have it chosen."
    )


def first_output(trainer, inputs: dict) -> str:
    """The first module of a forward pass whose output is not finite, in words."""
    found: list[str] = []

    def look(name: str):
        def hook(_module, _args, output):
            if isinstance(output, torch.Tensor) and not found and not torch.isfinite(output).all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in leaves(trainer.model)]
    try:
        with torch.no_grad():
            trainer.method.compute_loss(trainer, trainer.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of its layer {found[0]!r} is not" if found else "its layers' outputs still are"


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if not list(module.children())]


def check_weights(layers: dict[str, Layer], step: int) -> None:
    """Refuse the result of a training whose last step was not finite.

    Raises:
        UnlearningError: it names the layer.
    """
    for name, layer in layers.items():
        if not torch.isfinite(layer.weight).all():
            raise UnlearningError(
                f"the weight of layer {name!r} is not finite after step {step}: lower learning_rate, or leave it unset"
                " to have it chosen. Nothing was saved."
            )
