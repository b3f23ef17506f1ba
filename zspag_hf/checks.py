"""Refusals that need no data: the model's storage, the backend, the launch, the output folder."""

from __future__ import annotations

import os

import torch
from torch import nn

from .errors import UnlearningError
from .report import REPORT_NAME


def check_trainable(model: nn.Module) -> None:
    """Refuse weights in half precision: a projection rounded to them leaks 6e-3 of the update.

    Raises:
        UnlearningError: a floating-point parameter is not float32 or float64.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise UnlearningError(
                f"parameter {name!r} is stored as {parameter.dtype}: load the model with dtype=torch.float32 (bf16=True"
                " in the config still computes in half precision)."
            )


def check_backend(accelerator) -> None:
    """Refuse what would make the constraint inexact.

    Raises:
        UnlearningError: FSDP1 or DeepSpeed flatten or shard the weights that the constraint works on.
    """
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA", "TP"):
        raise UnlearningError(
            f"the backend {kind} is not supported: it flattens or shards the weights that the constraint must see"
            " whole. Launch with MULTI_GPU, MULTI_CPU or one process."
        )


def check_output_dir(folder: str) -> None:
    """Refuse a folder that holds a model which is not a result of this library.

    Raises:
        UnlearningError: ``config.json`` or weights without an unlearning report.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise UnlearningError(f"output_dir {folder!r} is a file: give a folder.")
        return
    names = set(os.listdir(folder))
    if names & {"config.json", "model.safetensors", "model.safetensors.index.json"} and REPORT_NAME not in names:
        raise UnlearningError(f"output_dir {folder!r} holds another model: give an empty or new folder.")


def check_launch(accelerator) -> None:
    """Refuse a launch that was asked for several processes and silently started one.

    Raises:
        UnlearningError: WORLD_SIZE differs from the processes that are there.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise UnlearningError(
            f"{asked} processes were asked for and {accelerator.num_processes} run: on CPU use accelerate launch"
            f" --multi_gpu --num_processes {asked} ... --use_cpu."
        )
