"""Refusals that need no data: the model's storage, the backend, the launch, the output folder."""

from __future__ import annotations

import os

import torch
from torch import nn

from .errors import UnlearningError
from .labels import model_labels
from .report import REPORT_NAME, UnlearningReport


def check_trainable(model: nn.Module) -> None:
    """Refuse weights that are not float32: a projection rounded to half precision leaks 6e-3 of the update.

    Raises:
        UnlearningError: a floating-point parameter is not float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnlearningError(
                f"parameter {name!r} is stored as {parameter.dtype}: load the model with dtype=torch.float32 (bf16=True"
                " in the config still computes in half precision)."
            )


def check_same_labels(config, names: list[str]) -> None:
    """Refuse a model for comparison whose outputs mean something else.

    Raises:
        UnlearningError: other classes, or another order.
    """
    unnamed = [f"LABEL_{i}" for i in range(len(names))]  # saved by a tool that drops names
    if model_labels(config) not in (names, unnamed):
        raise UnlearningError(
            f"the labels of a model to compare with differ from the model's: {model_labels(config)[:5]} ... against"
            f" {names[:5]} ...: give one with the same classes in the same order, or set its config.id2label."
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


def check_parallel(n_gpu: int) -> None:
    """Refuse ``DataParallel``, which Trainer turns to where one process sees several GPUs.

    Raises:
        UnlearningError: more than one GPU in this process.
    """
    if n_gpu > 1:
        raise UnlearningError(
            f"one process sees {n_gpu} GPUs, which Trainer would drive by threads: start with accelerate launch, or set"
            " CUDA_VISIBLE_DEVICES=0."
        )


def check_device(device: torch.device) -> None:
    """Refuse devices without float64, which the Gram matrices are summed in.

    Raises:
        UnlearningError: an Apple GPU.
    """
    if device.type == "mps":
        raise UnlearningError("the device 'mps' has no float64, which the subspaces need: pass use_cpu=True.")


def check_output_dir(folder: str, request: dict) -> None:
    """Refuse a folder that holds anything but an earlier result of the same request.

    Args:
        request: "base_model" and "forget_classes", as they stand in the report.

    Raises:
        UnlearningError: another model, or the result of another request.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise UnlearningError(f"output_dir {folder!r} is a file: give a folder.")
        return
    names = set(os.listdir(folder))
    if REPORT_NAME in names:
        try:
            earlier = UnlearningReport.load(folder)
        except (TypeError, ValueError) as error:
            raise UnlearningError(
                f"output_dir {folder!r} holds an {REPORT_NAME} that this version cannot read ({error}): give a new"
                " folder."
            ) from error
        for name, value in request.items():
            if getattr(earlier, name) != value:
                raise UnlearningError(
                    f"output_dir {folder!r} holds the result of another request ({name} {getattr(earlier, name)!r}, not"
                    f" {value!r}): give an empty or new folder."
                )
    elif names & {"config.json", "model.safetensors", "model.safetensors.index.json"}:
        raise UnlearningError(f"output_dir {folder!r} holds another model: give an empty or new folder.")


def check_launch(accelerator) -> None:
    """Refuse a launch that was asked for several processes and silently started one.

    On CPU ``accelerate launch --num_processes 2`` starts one process and leaves only MASTER_ADDR behind.

    Raises:
        UnlearningError: fewer processes run than were asked for.
    """
    asked = os.environ.get("WORLD_SIZE") or ("several" if "MASTER_ADDR" in os.environ else "1")
    if asked != str(accelerator.num_processes) and (asked != "several" or accelerator.num_processes == 1):
        raise UnlearningError(
            f"{asked} processes were asked for and {accelerator.num_processes} runs: on CPU use accelerate launch"
            " --multi_gpu --num_processes N script.py --use_cpu true."
        )
