"""What tests/test_fsdp2.py runs in each process, as ``accelerate launch --config_file fsdp2.yaml fsdp2_job.py FOLDER``.

accelerate turns FSDP on a CPU into plain DDP. Told that the processes have GPUs, it takes its own way through FSDP2 and
stays on the CPU, where torch shards by gloo.
"""

import copy
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from cases import MODELS
from safetensors.torch import save_file
from tiny import config, images, tiny_model, tiny_processor
from tiny_runs import leak
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from zspag_hf import UnlearningError, UnlearningTrainer
from zspag_hf.constraint import HardConstraint, SoftConstraint, attach
from zspag_hf.layers import as_layer
from zspag_hf.processes import rank_and_size
from zspag_hf.sharding import own_rows, sharded, whole
from zspag_hf.subspaces import Basis

BEE = {"forget_classes": ["bee"]}  # the class that the tiny models see in random images
HARD = {"adaptive": False, "learning_rate": 0.005, "constraint": "hard", "energy_threshold": 0.9, **BEE}
JOBS = {
    "adaptive": {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 7, **BEE},
    "adaptive_resnet": {"family": "resnet", "max_steps": 20, "gradient_accumulation_steps": 2, **BEE},
    "head": {"max_steps": 3, "scope": "head", **BEE},
    "hard": {"max_steps": 9, "optim": "adamw_torch", "weight_decay": 0.1, "max_grad_norm": 1.0, **HARD},
    "hard_resnet": {
        "family": "resnet",
        "max_steps": 7,
        "gradient_accumulation_steps": 2,
        "optim_args": "momentum=0.9",
        **HARD,
    },
    "soft": {"max_steps": 9, **HARD, "constraint": "soft"},
}


def make_trainer(folder, options) -> UnlearningTrainer:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    options = dict(options)
    model = tiny_model(options.pop("family", "vit"))
    settings = config(folder, per_device_train_batch_size=6 // size, per_device_eval_batch_size=4, **options)
    assert settings.device.type == "cpu"
    if size > 1:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    test = images([0, 1, 2, 3, 4, 1, 2] * 3, seed=3)
    return UnlearningTrainer(model, settings, images([1] * 13, seed=1), test, processing_class=tiny_processor())


def weights(run) -> dict:
    return {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}


def job(name, folder):
    """Weights of one run, and what it read, chose and counts."""
    run = make_trainer(folder / name, JOBS[name])
    before = run.evaluate()
    kinds, step = set(), run.training_step
    run.training_step = lambda *given: kinds.add(type(run.layers[run.head].weight)) or step(*given)
    run.train()
    metrics = run.evaluate()
    run.save_model()
    counts = [{key: value for key, value in one.items() if "acc" in key} for one in (before, metrics)]
    facts = {"kinds": [kind.__name__ for kind in kinds], "model": type(run.model).__name__, "counts": counts}
    facts |= {"curve": run.report.curve, "leak": leak(run) if name.startswith("hard") else None}
    copy.deepcopy(run.model)(pixel_values=torch.zeros(1, 3, 8, 8)).logits.sum().backward()
    return weights(run), facts


# ---------------------------------------------------------------------- in two processes alone


def odd_network() -> nn.Module:
    """Outputs that two processes cannot halve, groups that the cut goes through, and a single row."""
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(6, 21, 3, padding=1, groups=3),
        nn.Conv2d(21, 21, 1, groups=21),
    ]
    rest = [nn.Flatten(), nn.Linear(21 * 4, 7), nn.Linear(7, 1)]
    return nn.Sequential(*convolutions, *rest)


def odd_layers(model: nn.Module) -> dict:
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name: as_layer(name, module) for name, module in model.named_modules() if isinstance(module, kinds)}
    frames = torch.randn(3, 18, 4, generator=torch.Generator().manual_seed(1))
    return layers | {"1": replace(layers["1"], frame=torch.linalg.qr(frames).Q)}


def odd_constraint(kind: str, layers: dict):
    """Random, of all ranks: the hard one has both of its forms in the first layer."""
    generator = torch.Generator().manual_seed(2)
    shapes = {name: (layer.groups, layer.width) for name, layer in layers.items()}
    if kind == "hard":
        bases = {}
        for name, (groups, width) in shapes.items():
            ranks = [width * group // (groups + 1) for group in range(1, groups + 1)]
            full = [torch.linalg.qr(torch.randn(width, width, generator=generator).double()).Q for _ in ranks]
            bases[name] = Basis([q[:, :rank] for q, rank in zip(full, ranks, strict=True)], 1.0)
        return HardConstraint(layers, bases)
    dampings = {name: torch.rand(groups, width, width, generator=generator) for name, (groups, width) in shapes.items()}
    return SoftConstraint(layers, dampings, step_scale=0.5)


def odd_shapes(kind: str) -> None:
    """Steps on cut groups, uneven shards and none at all are those of the whole model."""
    rank, size = rank_and_size()
    pixels = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    found = []
    for split in (False, True):
        model = odd_network()
        layers = odd_layers(model)
        constraint = odd_constraint(kind, layers)
        with sharded(model) if split else torch.enable_grad():
            optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
            attach(constraint, optimizer)
            for _ in range(3):
                optimizer.zero_grad()
                model(pixels[rank::size] if split else pixels).square().mean().backward()
                optimizer.step()
            shares = {name: own_rows(layer.weight) for name, layer in layers.items()}
            assert isinstance(model[0].weight, DTensor) == split
        assert type(model[0].weight) is nn.Parameter and type(model) is nn.Sequential
        found.append({name: p.detach().clone() for name, p in model.named_parameters()})
    start = dict(odd_network().named_parameters())
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{kind} {n} {m}")
        assert name.endswith("bias") or (weight - start[name]).abs().max() > 1e-3
    mine = {name: (first, len(rows)) for name, (rows, first) in shares.items()}
    assert mine["1"] == ((0, 11), (11, 10))[rank], "eleven rows end within the second group of seven"
    assert mine["5"] == ((0, 1), (1, 0))[rank], "one row has no other"


def every_architecture() -> None:
    """Passes of the sharded model are those of the whole one, and it ends whole."""
    rank, size = rank_and_size()
    for case in MODELS:
        model = case.build(torch.float32)
        if any(isinstance(module, Conv1D) for module in model.modules()):
            continue
        modules = [(type(module), set(vars(module))) for module in model.modules()]
        names = {name for name, p in model.named_parameters() if p.ndim > 1 and "bias" not in name}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        seed = torch.Generator().manual_seed(0)
        pixels = torch.randn(2 * size, case.channels, case.image_size, case.image_size, generator=seed)
        expected = model(pixel_values=pixels).logits
        expected.square().mean().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        largest = max(grad.abs().max() for grad in grads.values())
        model.zero_grad()
        with sharded(model):
            logits = model(pixel_values=pixels[2 * rank : 2 * rank + 2]).logits
            torch.testing.assert_close(logits, expected[2 * rank : 2 * rank + 2], msg=lambda m, c=case: f"{c.name} {m}")
            logits.square().mean().backward()
            for name, parameter in model.named_parameters():
                if name in grads:
                    difference = (parameter.grad.full_tensor() - grads[name]).abs().max()
                    assert difference < 1e-4 * largest, (case.name, name, difference, largest)
                    with torch.no_grad():
                        parameter.mul_(1.5)
            with whole(model), torch.no_grad():
                before = [p.clone() for p in model.parameters()]
                for _ in range(1 + rank):  # not as many in each process
                    model(pixel_values=pixels)
                for parameter in model.parameters():
                    parameter.add_(0.25)
        assert [(type(module), set(vars(module))) for module in model.modules()] == modules, case.name
        for (name, parameter), one in zip(model.named_parameters(), before, strict=True):
            assert torch.equal(parameter, one + 0.25), (case.name, name)


def refusals(folder) -> None:
    """What the constructor and train() say under FSDP2."""
    with pytest.raises(UnlearningError, match="save_strategy='steps' does not go with FSDP2"):
        make_trainer(folder / "saving", {**JOBS["hard"], "save_strategy": "steps"})
    run = make_trainer(folder / "diverging", {**HARD, "constraint": "none", "learning_rate": 1e30, "max_steps": 9})
    start = weights(run)
    start = {name: tensor.clone() for name, tensor in start.items()}
    with pytest.raises(UnlearningError, match=r"not finite at step \d: the output of its layer|another process tells"):
        run.train()
    assert weights(run).keys() == start.keys() and not run.is_fsdp_enabled
    with pytest.raises(UnlearningError, match="ViTForImageClassification was sharded by FSDP2 before"):
        run.train()
    with pytest.raises(UnlearningError, match="FSDP2 cannot go on from a checkpoint"):
        make_trainer(folder / "resumed", JOBS["hard"]).train(resume_from_checkpoint=str(folder))
    os.environ |= {"FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"}
    with pytest.raises(UnlearningError, match="the backend FSDP is not supported: version 1, FSDP1, flattens"):
        make_trainer(folder / "first", JOBS["hard"])


def main(folder: Path) -> None:
    for name in JOBS:
        tensors, facts = job(name, folder)
        assert PartialState().distributed_type == DistributedType.FSDP
        if PartialState().is_main_process:
            save_file(tensors, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(facts))
    odd_shapes("hard")
    odd_shapes("soft")
    every_architecture()
    refusals(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # at once: what a process group's threads do at exit is not this suite's
