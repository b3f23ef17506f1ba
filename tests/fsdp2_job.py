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
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from zspag_hf import FastClip, UnlearningError, UnlearningTrainer, jobs
from zspag_hf.parallel.processes import rank_and_size
from zspag_hf.parallel.sharding import own_rows, sharded, unsharded
from zspag_hf.pipeline.constraint import HardConstraint, SoftConstraint, attach
from zspag_hf.pipeline.layers import as_layer
from zspag_hf.pipeline.subspaces import Basis

BEE = {"forget_classes": ["bee"]}  # the class that the tiny models see in random images
FORGET, TEST = images([1] * 13, seed=1), images([0, 1, 2, 3, 4, 1, 2] * 3, seed=3)
HARD = {"adaptive": False, "learning_rate": 0.005, "constraint": "hard", "energy_threshold": 0.9, **BEE}
FREE = HARD | {"constraint": "none", "energy_threshold": None}
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


def make_settings(folder, options):
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return config(folder, per_device_train_batch_size=6 // size, per_device_eval_batch_size=4, **options)


def told_of_gpus(model, settings, *given, **options) -> UnlearningTrainer:
    """The trainer; a new configuration takes back what accelerate was told, and the first trainer makes FSDP of it."""
    assert settings.device.type == "cpu"
    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return UnlearningTrainer(model, settings, *given, **options)


def make_trainer(folder, options, callbacks=None) -> UnlearningTrainer:
    options = dict(options)
    model = tiny_model(options.pop("family", "vit"))
    given = {"processing_class": tiny_processor(), "callbacks": callbacks}
    return told_of_gpus(model, make_settings(folder, options), FORGET, TEST, **given)


class AfterOneStep(TrainerCallback):
    """Calls something once, with the control, between the first step and the second."""

    def __init__(self, call):
        self.call = call

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 1:
            self.call(control)


def weights(run) -> dict:
    return {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}


def watched(run, name: str) -> set[str]:
    """The kinds of weight that a method of the trainer meets from now on."""
    seen, method = set(), getattr(run, name)

    def look(*given, **options):
        seen.add(type(run.layers[run.head].weight).__name__)
        return method(*given, **options)

    setattr(run, name, look)
    return seen


def job(name, folder):
    """Weights of one run, and what it read, chose and counts."""
    run = make_trainer(folder / name, JOBS[name])
    before = run.evaluate()
    kinds = {name: watched(run, name) for name in ("training_step", "prediction_step")}
    read = [before]
    run.add_callback(AfterOneStep(lambda _: read.append(run.predict(TEST).metrics)))
    run.train()
    read.append(run.evaluate())
    run.save_model()
    counts = [{key: value for key, value in one.items() if "acc" in key} for one in read]
    facts = {
        "kinds": {name: list(seen) for name, seen in kinds.items()},
        "model": type(run.model).__name__,
        "counts": counts,
    }
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
            with unsharded(model), torch.no_grad():
                before = [p.clone() for p in model.parameters()]
                for _ in range(1 + rank):  # not as many in each process
                    model(pixel_values=pixels)
                for parameter in model.parameters():
                    parameter.add_(0.25)
        assert [(type(module), set(vars(module))) for module in model.modules()] == modules, case.name
        for (name, parameter), one in zip(model.named_parameters(), before, strict=True):
            assert torch.equal(parameter, one + 0.25), (case.name, name)


class Block(nn.Module):
    """Two layers of one weight, and a list of blocks within."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.inner = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x):
        return self.inner[0](self.second(torch.tanh(self.first(x))))


class Repeating(nn.Module):
    """One block twice."""

    def __init__(self):
        super().__init__()
        block = Block()
        self.layers, self.head = nn.ModuleList([block, block]), nn.Linear(6, 6)

    def forward(self, x):
        for block in self.layers:
            x = block(x)
        return self.head(x)


def repeating_network() -> Repeating:
    torch.manual_seed(0)
    return Repeating()


def shared_in_a_block() -> None:
    """Steps on weights that a block shares, or that are called twice, are those of the whole model."""
    rank, size = rank_and_size()
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for split in (False, True):
        model = repeating_network()
        with sharded(model) if split else torch.enable_grad():
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(3):
                optimizer.zero_grad()
                model(inputs[rank::size] if split else inputs).square().mean().backward()
                optimizer.step()
        assert model.layers[0].first.weight is model.layers[1].second.weight
        found.append(model.state_dict())
    start = repeating_network().state_dict()
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n} {m}")
        assert (weight - start[name]).abs().max() > 1e-4, name


def after_an_error() -> None:
    """The model is whole, with the weights with which it was so last; a parameter that was replaced is an error."""
    model = odd_network()
    expected = {name: p + 1 for name, p in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), sharded(model), torch.no_grad():
        with unsharded(model):
            for parameter in model.parameters():
                parameter.add_(1)
        for parameter in model.parameters():
            parameter.mul_(2)
        1 / 0  # noqa: B018
    assert all(torch.equal(p, expected[name]) for name, p in model.state_dict().items())
    assert type(model) is nn.Sequential and not any(isinstance(p, DTensor) for p in model.parameters())
    other = odd_network()
    with pytest.raises(RuntimeError, match="'bias' of Linear was replaced by a Parameter"), sharded(other):
        other[5].bias = nn.Parameter(torch.zeros(1))
    assert type(other[5].bias) is nn.Parameter and torch.equal(other[5].bias, odd_network()[5].bias)


def beside(folder) -> None:
    """Settings beside a run leave it as it is alone, and each trains; those of other methods are refused at once."""
    settings = make_settings(folder / "beside", JOBS["hard"])
    job = jobs.Job(tiny_model(), tiny_processor(), FORGET, TEST)
    with pytest.raises(UnlearningError, match="'random' is of method='random_labels', which does not go with FSDP2"):
        jobs.run(job, settings, {"other": {}, "random": {"method": "random_labels"}}, "quick", save=False)
    assert not (folder / "beside" / "out" / "_stages").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "UnlearningTrainer", told_of_gpus)
        run = jobs.run(job, settings, {"few steps": {"max_steps": 2}}, "quick", save=False)
    alone = make_trainer(folder / "alone", JOBS["hard"])
    alone.train()
    assert all(torch.equal(tensor, weights(alone)[name]) for name, tensor in weights(run).items())
    few, whole, start = ({**run.report.models[name], "seconds": 0} for name in ("few steps", "unlearned", "original"))
    assert few != whole and few != start, "trained, and otherwise"


def refusals(folder) -> None:
    """What the constructor and train() say under FSDP2."""
    with pytest.raises(UnlearningError, match="save_strategy='steps' does not go with FSDP2"):
        make_trainer(folder / "saving", {**JOBS["hard"], "save_strategy": "steps"})
    run = make_trainer(folder / "diverging", {**FREE, "learning_rate": 1e30, "max_steps": 9})
    with pytest.raises(UnlearningError, match=r"not finite at step \d: the output of its layer|another process tells"):
        run.train()
    assert type(run.model).__name__ == "ViTForImageClassification" and not run.is_fsdp_enabled
    assert not any(isinstance(parameter, DTensor) for parameter in run.model.parameters())
    with pytest.raises(UnlearningError, match="ViTForImageClassification was sharded by FSDP2 before"):
        run.train()
    free = {**FREE, "max_steps": 2}
    with pytest.raises(UnlearningError, match="the callback FastClip, which must see whole weights"):
        make_trainer(folder / "clipped", free, [FastClip()])
    run = make_trainer(folder / "clipped later", free)
    run.add_callback(FastClip)
    with pytest.raises(UnlearningError, match="the callback FastClip, which must see whole weights"):
        run.train()
    assert not (folder / "clipped later" / "out" / "_stages").exists(), "no stage ran"
    asking = AfterOneStep(lambda control: setattr(control, "should_save", True))
    run = make_trainer(folder / "asking", free, [asking])
    with pytest.raises(UnlearningError, match="FSDP2 saves nothing while it trains: leave save_strategy='no'"):
        run.train()
    assert type(run.model.classifier.weight) is nn.Parameter
    assert not list((folder / "asking" / "out").glob("checkpoint-*"))
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
    shared_in_a_block()
    after_an_error()
    beside(folder)
    refusals(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # at once: what a process group's threads do at exit is not this suite's
