"""What is refused before any expensive work: arguments, the model, optimizers, the backend and the launch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..config import UnlearningConfig
from ..errors import UnlearningError
from ..fastclip import FastClip
from ..methods import Constrained, Method
from ..methods.zspag import ZSPAG
from ..parallel.processes import summed
from ..pipeline.layers import Layer

INSTEAD = {  # arguments of Trainer that have no meaning here -> the mend
    "train_dataset": "pass the images to forget as forget_dataset",
    "model_init": "pass a model, by id, folder or object",
    "data_collator": "images are read by forget_dataset's columns; leave it out",
    "compute_loss_func": "the method has the loss; pass method=, an instance of your own",
    "optimizer_cls_and_kwargs": "give optim and optim_args, or optimizers=",
    "preprocess_logits_for_metrics": "the scores need the logits; change them in compute_metrics",
}


def check_arguments(args: Any, unsupported: Mapping[str, Any]) -> None:
    """Refuse other options than an UnlearningConfig, and arguments of Trainer that mean nothing here.

    Raises:
        UnlearningError: it names the argument and the mend.
        TypeError: an argument that Trainer has not either.
    """
    for name in unsupported:
        if name not in INSTEAD:
            raise TypeError(f"UnlearningTrainer has no argument {name!r}")
        raise UnlearningError(f"{name} has no meaning here: {INSTEAD[name]}.")
    if not isinstance(args, UnlearningConfig):
        raise UnlearningError(f"args must be an UnlearningConfig, not {type(args).__name__}.")


def check_combination(
    method: Method,
    retain_dataset: Any,
    public_dataset: Any,
    callbacks: Sequence[TrainerCallback] | None,
    optimizers: tuple,
) -> None:
    """Refuse what does not go with the method.

    Raises:
        UnlearningError: no retained data for a method that reads them, public images for one that does not, or a
            callback or optimizer that breaks what it promises.
    """
    name = type(method).__name__
    if method.reads_retained and retain_dataset is None:
        raise UnlearningError(f"{name} is to read retained data: pass retain_dataset.")
    if public_dataset is not None and not method.reads_public:
        raise UnlearningError(f"{name} cannot use unlabelled images: leave public_dataset out, or give method='zspag'.")
    confined = isinstance(method, ZSPAG) or (isinstance(method, Constrained) and method.constraint != "none")
    if confined and any(isinstance(one, FastClip) for one in callbacks or ()):
        raise UnlearningError(
            f"FastClip changes weights past the constraint of {name}: give one with constraint='none', or leave the"
            " callback out."
        )
    given = [type(one).__name__ for one in optimizers or () if one is not None]
    if given and (isinstance(method, ZSPAG) or not method.loops):
        raise UnlearningError(
            f"{name} steps by itself and cannot take {' and '.join(given)}: give method='zspag_paper' with optimizers."
        )
    if given and optimizers[0] is None:
        raise UnlearningError(f"{given[0]} comes without its optimizer: give both in optimizers=, or neither.")


def check_optimizer(optimizer: torch.optim.Optimizer, layers: Mapping[str, Layer]) -> None:
    """Refuse an optimizer that would step on other weights.

    Raises:
        UnlearningError: it holds no weight of the model.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(layer.weight) in held for layer in layers.values()):
        raise UnlearningError(
            f"the given {type(optimizer).__name__} holds none of the model's weights: make it from model.parameters()"
            " of the model that is passed, or leave optimizers unset."
        )


def check_unused(optimizer: Any) -> None:
    """Refuse an optimizer that was given and has run already: momentum of that run would be in this one.

    Raises:
        UnlearningError: accelerate has prepared it.
    """
    if isinstance(optimizer, AcceleratedOptimizer):
        raise UnlearningError(
            f"the given {type(optimizer.optimizer).__name__} has been used by a run of this trainer: make a new"
            " optimizer and a new trainer for another one, or to go on with that one by resume_from_checkpoint=True."
        )


def check_processes(accelerator: Any, n_gpu: int) -> None:
    """Refuse what would make the constraint inexact, and other processes than were asked for.

    Raises:
        UnlearningError: FSDP, DeepSpeed and others flatten or cut the rows that the constraint works on; Trainer turns
            to ``DataParallel`` where one process sees several GPUs; or from :func:`check_launch`.
    """
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA", "TP"):
        raise UnlearningError(
            f"the backend {kind} is not supported: it flattens or shards the weights, whose rows the constraint must"
            " see whole. Launch with MULTI_GPU, MULTI_CPU or one process: 'accelerate_configs/multi_gpu.yaml'."
        )
    if n_gpu > 1:
        raise UnlearningError(
            f"one process sees {n_gpu} GPUs, which Trainer would drive by threads: start with accelerate launch, or set"
            " CUDA_VISIBLE_DEVICES=0."
        )
    check_launch(accelerator)


def check_finite(values: Tensor, what: str, state: TrainerState, args: UnlearningConfig) -> None:
    """Refuse to go on with values that are not finite; all processes end together.

    Raises:
        UnlearningError: it names the step and what helps.
    """
    if summed((~torch.isfinite(values.detach()).all()).float().cpu()):
        raise UnlearningError(
            f"{what} is not finite at step {state.global_step}: lower learning_rate ({args.learning_rate}), or leave it"
            " unset. debug='underflow_overflow' tells in which layer it begins. Nothing was saved."
        )


def check_device(device: torch.device) -> None:
    """Refuse devices without float64, which the Gram matrices are summed in.

    Raises:
        UnlearningError: an Apple GPU.
    """
    if device.type == "mps":
        raise UnlearningError("the device 'mps' has no float64, which the subspaces need: pass use_cpu=True.")


def check_checkpoint(given: str | bool) -> None:
    """Refuse a checkpoint that is not there, which Trainer would look for after the proxies were made.

    Args:
        given: a folder; True and False are no folder's name.

    Raises:
        UnlearningError: no such checkpoint.
    """
    if isinstance(given, str) and not os.path.isfile(os.path.join(given, TRAINER_STATE_NAME)):
        raise UnlearningError(
            f"resume_from_checkpoint={given!r}: there is no checkpoint there. Give a folder that save_strategy='epoch'"
            " wrote, True to go on with a run that was cut off, or leave it out."
        )


def check_launch(state: Any) -> None:
    """Refuse a launch that was asked for several processes and silently started one, or for shards.

    On CPU ``accelerate launch --num_processes 2`` starts one process and leaves only MASTER_ADDR behind, and FSDP
    becomes something else.

    Args:
        state: of accelerate: ``num_processes`` and ``distributed_type``.

    Raises:
        UnlearningError: fewer processes run than were asked for, or others; or FSDP was asked for.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UnlearningError(
            "FSDP shards the weights, whose rows the constraint must see whole: launch without --use_fsdp, with"
            " 'accelerate_configs/multi_gpu.yaml'."
        )
    asked = os.environ.get("WORLD_SIZE") or ("several" if "MASTER_ADDR" in os.environ else "1")
    if asked != str(state.num_processes) and (asked != "several" or state.num_processes == 1):
        raise UnlearningError(
            f"{asked} processes were asked for and {state.num_processes} runs: on CPU use accelerate launch"
            " --multi_gpu --num_processes N script.py --use_cpu true."
        )
