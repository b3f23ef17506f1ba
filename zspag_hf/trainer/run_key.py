"""What a run's result depends on: the key of its stage cache."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from ..data.request import LEDGER
from ..methods import Method, Run, method_name
from ..parallel.processes import rank_and_size
from .stage_cache import checksum, digest_of


def run_key(run: Run, method: Method, optimizer: str | None = None) -> dict[str, Any]:
    """Checksums of the model's weights, of the images and of their normalisation, and every option that a result
    depends on, the global batch in place of the one of a device: a run may go on with another number of processes.
    Known to the first process alone.

    Args:
        optimizer: one that was given, in words.
    """
    if rank_and_size()[0]:
        return {}
    args = run.args
    settings = args.keyed() | method.to_dict() | {"method": method_name(method), "optimizer": optimizer}
    settings["global_batch_size"] = args.per_device_train_batch_size * args.world_size
    architecture = json.loads(run.model.config.to_json_string(use_diff=False))
    architecture.pop("_name_or_path", None)
    architecture[LEDGER] = architecture.get(LEDGER) or []
    images = {name: value for name, value in vars(run.forget).items() if isinstance(value, torch.Tensor)}
    return {
        "model": checksum(run.model.state_dict()),
        "architecture": digest_of(architecture),
        "images": checksum(images),
        "retained images": None if run.retained is None else checksum(vars(run.retained)),
        "public images": None if run.public is None else checksum({"pixels": run.public}),
        "processing": checksum({name: getattr(run.classifier, name) for name in ("scale", "shift")}),
        "classes": run.forget_ids,
        "layers": list(run.layers),
        "versions": f"zspag_hf {version('zspag-hf')}, torch {torch.__version__}",
        "settings": json.loads(json.dumps(settings, default=str)),
    }
