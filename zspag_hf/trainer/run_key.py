"""What a run's result depends on: the key of its stage cache."""

from __future__ import annotations

import json
from enum import Enum

import torch

from .. import __version__
from ..config import UnlearningConfig
from ..data.request import LEDGER
from ..parallel.processes import rank_and_size
from .stage_cache import checksum, digest_of

# Not what the result depends on, or in the key in another form.
# fmt: off
ELSEWHERE = {
    "output_dir", "cache_dir", "dataset_name", "model_revision", "trust_remote_code", "allow_pickled_weights",
    "hub_create_pr", "hub_strategy", "save_strategy", "logging_steps", "dataloader_pin_memory",
    "remove_unused_columns", "per_device_train_batch_size", "per_device_eval_batch_size", "forget_classes",
    "image_column_name", "label_column_name", "label_offset",
}
OF_TRANSFORMERS = (
    "seed", "data_seed", "gradient_accumulation_steps", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "warmup_steps", "lr_scheduler_kwargs", "bf16", "fp16", "full_determinism", "eval_strategy",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_steps", "save_steps",
)
# fmt: on


def run_key(trainer) -> dict:
    """Checksums of the model's weights, of the images and of their normalisation, and every setting that training
    reads, the global batch in place of the one of a device: a run may go on with another number of processes. Known to
    the first process alone."""
    if rank_and_size()[0]:
        return {}
    args, forget = trainer.args, trainer.forget
    names = [name for name in UnlearningConfig.__annotations__ if name not in ELSEWHERE]
    settings = {name: getattr(args, name) for name in (*names, *OF_TRANSFORMERS)}
    settings = {name: value.value if isinstance(value, Enum) else value for name, value in settings.items()}
    settings["global_batch_size"] = args.per_device_train_batch_size * args.world_size
    if not trainer.own_optimizer:
        settings["optimizer"] = repr(trainer.optimizer)
    architecture = json.loads(trainer.model.config.to_json_string(use_diff=False))
    architecture.pop("_name_or_path", None)
    architecture[LEDGER] = architecture.get(LEDGER) or []
    images = {name: value for name, value in vars(forget).items() if isinstance(value, torch.Tensor)}
    return {
        "model": checksum(trainer.model.state_dict()),
        "architecture": digest_of(architecture),
        "images": checksum(images),
        "retained images": None if trainer.retain is None else checksum(vars(trainer.retain)),
        "processing": checksum({name: getattr(trainer.classifier, name) for name in ("scale", "shift")}),
        "classes": trainer.forget_ids,
        "layers": list(trainer.layers),
        "versions": f"zspag_hf {__version__}, torch {torch.__version__}",
        "settings": {name: value if is_plain(value) else str(value) for name, value in settings.items()},
    }


def is_plain(value) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
