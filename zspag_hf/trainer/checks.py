"""Refusals that need no data: options of transformers' own, the model, the backend, the launch, the folders."""

from __future__ import annotations

import os
import tempfile

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from ..data.labels import model_labels
from ..errors import UnlearningError, first_line
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import Layer
from ..report.report import REPORT_NAME, UnlearningReport


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


def check_outputs(classifier: PixelClassifier, pixels: Tensor, model: str, images: str) -> Tensor:
    """Logits ``(N, C)`` of a first look at some images.

    Args:
        model, images: what they are called in a message.

    Raises:
        UnlearningError: the model cannot take the images as they are, or its outputs are not finite logits of its
            labels.
    """
    count = classifier.num_labels
    try:
        logits = classifier.predict(pixels)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UnlearningError(
            f"the {model} cannot read {images} of {tuple(pixels.shape[1:])} values: {first_line(error)} Give an image"
            " classifier, and as processing_class the image processor that belongs to it."
        ) from error
    if logits.shape[1:] != (count,) or not torch.isfinite(logits).all():
        broken = [name for name, p in classifier.model.named_parameters() if not torch.isfinite(p).all()]
        cause = f"they have the shape {tuple(logits.shape)}" if logits.shape[1:] != (count,) else "some are nan or inf"
        cause = f"its parameter {broken[0]!r} is not finite" if broken else cause
        raise UnlearningError(
            f"the {model}'s outputs on {images} are not {count} finite numbers ({cause}): give finite weights, no mask"
            " on the logits (the masked model has a row of its own), and the processing_class that belongs to it."
        )
    return logits


def check_optimizer(optimizer: torch.optim.Optimizer, layers: dict[str, Layer]) -> None:
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


def check_unused(optimizer) -> None:
    """Refuse an optimizer that was given and has run already: momentum of that run would be in this one.

    Raises:
        UnlearningError: accelerate has prepared it.
    """
    if isinstance(optimizer, AcceleratedOptimizer):
        raise UnlearningError(
            f"the given {type(optimizer.optimizer).__name__} has been used by a run of this trainer: make a new"
            " optimizer and a new trainer for another one, or to go on with that one by resume_from_checkpoint=True."
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
        UnlearningError: FSDP1, DeepSpeed and others flatten or cut the rows that the constraint works on. FSDP2 has a
            check of its own, :func:`zspag_hf.parallel.sharding.check_sharding`.
    """
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA", "TP"):
        why = "version 1, FSDP1, flattens" if kind == "FSDP" else "it flattens or shards"
        raise UnlearningError(
            f"the backend {kind} is not supported: {why} the weights, whose rows the constraint must see whole. Launch"
            " with MULTI_GPU, MULTI_CPU, FSDP with 'fsdp_version: 2', or one process."
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


def check_writable(folder: str) -> None:
    """Make a folder, and refuse one that nothing can be written to.

    Raises:
        UnlearningError: a file, below one, without permission, or no path at all.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, TypeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UnlearningError(f"output_dir {folder!r} cannot be written to ({why}): give another folder.") from error


def check_checkpoint(given: str | bool, sharded: bool = False) -> None:
    """Refuse a checkpoint that is not there, which Trainer would look for after the proxies were made.

    Args:
        given: a folder; True and False are no folder's name.
        sharded: whether FSDP2 is to train, which goes on from finished stages alone.

    Raises:
        UnlearningError: no such checkpoint, or one that cannot be gone on from.
    """
    if isinstance(given, str) and sharded:
        raise UnlearningError(
            f"resume_from_checkpoint={given!r}: FSDP2 cannot go on from a checkpoint. Give True to go on after the last"
            " finished stage, or launch with 'accelerate_configs/multi_gpu.yaml'."
        )
    if isinstance(given, str) and not os.path.isfile(os.path.join(given, TRAINER_STATE_NAME)):
        raise UnlearningError(
            f"resume_from_checkpoint={given!r}: there is no checkpoint there. Give a folder that save_strategy='epoch'"
            " wrote, True to go on with a run that was cut off, or leave it out."
        )


def check_output_dir(folder: str, request: dict) -> None:
    """Refuse a folder that holds anything but an earlier result of the same request.

    Args:
        request: "base_model" and "forget_classes", as they stand in the report.

    Raises:
        UnlearningError: another model, or the result of another request.
    """
    check_writable(folder)
    names = set(os.listdir(folder))
    if REPORT_NAME in names:
        try:
            earlier = UnlearningReport.load(folder)
        except (OSError, TypeError, ValueError) as error:
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


def fsdp_is_asked() -> bool:
    """Whether accelerate was launched with FSDP, of either version."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_launch(accelerator) -> None:
    """Refuse a launch that was asked for several processes and silently started one.

    On CPU ``accelerate launch --num_processes 2`` starts one process and leaves only MASTER_ADDR behind.

    Raises:
        UnlearningError: fewer processes run than were asked for, or others.
    """
    if fsdp_is_asked() and accelerator.distributed_type.value != "FSDP":
        raise UnlearningError(
            f"FSDP was asked for and {accelerator.distributed_type.value} runs, which is what accelerate makes of it"
            " without GPUs: launch without --use_fsdp."
        )
    asked = os.environ.get("WORLD_SIZE") or ("several" if "MASTER_ADDR" in os.environ else "1")
    if asked != str(accelerator.num_processes) and (asked != "several" or accelerator.num_processes == 1):
        raise UnlearningError(
            f"{asked} processes were asked for and {accelerator.num_processes} runs: on CPU use accelerate launch"
            " --multi_gpu --num_processes N script.py --use_cpu true."
        )
