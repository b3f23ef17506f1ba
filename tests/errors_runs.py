"""Bad requests and runs: what to forget, where to write, and what goes wrong on the way."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from errors_case import (
    CAT,
    Case,
    a_file,
    a_result,
    constant,
    fixed,
    request,
    run,
    training,
    untrained,
    without,
    writing,
)
from errors_models import Headless
from tiny import NAMES, config, images, tiny_model, tiny_processor, trainer
from torch import nn
from torch.distributed.fsdp import FSDPModule

from zspag_hf import FastClip, spectral_norms
from zspag_hf.cli.jobs import BASELINES, Job
from zspag_hf.cli.jobs import run as run_job
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig
from zspag_hf.parallel.sharding import SHARDED, check_parameters, check_sharding, check_unsharded
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.proxies import make_proxies
from zspag_hf.trainer.checks import check_checkpoint

RETRAIN = {"method": "retrain", "retain": images([0, 1, 3, 4], seed=9)}
ENTRY = {"classes": [CAT], "date": "2026-01-01"}


def ledger(*entries):
    """A model with a history."""

    def make():
        model = tiny_model()
        model.config.unlearning = list(entries)
        return model

    return make


def all_forgotten(_folder: Path):
    return make_proxies(PixelClassifier(tiny_model(), tiny_processor()), torch.zeros(1, 3, 8, 8), [*range(5)], None)


def of_another_model(folder: Path):
    model = tiny_model()
    optimizer = torch.optim.SGD(tiny_model().parameters(), 0.1)
    return trainer(folder, model=model, optimizers=(optimizer, None), adaptive=False)


def run_once(folder: Path):
    """With an optimizer of its own, after a run."""
    model = tiny_model()
    options = {"adaptive": False, "learning_rate": 0.01, "max_steps": 1}
    once = trainer(folder, model=model, optimizers=(torch.optim.SGD(model.parameters(), 0.01), None), **options)
    once.train()
    return once


def theirs():
    """A model whose class a repository brought along."""
    model = tiny_model()
    model.__class__ = type("Theirs", (type(model),), {"__module__": "transformers_modules.user.theirs"})
    return model


class Scale(nn.Module):
    """A layer that does not say how its weight begins."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return x * self.factor


def unclear():
    """A plain module with such a layer."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), Scale())
    return ModuleClassifier(ModuleConfig(id2label=dict(enumerate(NAMES)), image_size=8), network).eval()


def retaining(data, forget=None, **options):
    """A feed: a trainer that is to read retained data."""
    options = {"method": "finetune", "forget": forget} | options
    return lambda folder: trainer(folder, retain=data, **options)


def headless(method: str, **options):
    """Makes a run whose model has no layer with one output a label, as far as it knows."""

    def make(folder: Path):
        run = trainer(folder, method=method, **options)
        run.head = None
        return run

    return make


def mapless(folder: Path):
    """A run whose model has nothing but its head, as far as it knows."""
    run = trainer(folder, method="mixunlearn", retain=images([0, 1, 3, 4] * 4, seed=9))
    run.layers = {run.head: run.layers[run.head]}
    return run


def saving_shards(_folder: Path):
    """A run under FSDP2 that is to write checkpoints."""
    plugin = SimpleNamespace(auto_wrap_policy=None, cpu_offload=None, cpu_ram_efficient_loading=False)
    plugin.activation_checkpointing, plugin.ignored_modules = False, None
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), parallelism_config=None)
    args = SimpleNamespace(method="zspag", save_strategy="epoch", bf16=False)
    return check_sharding(accelerator, args, tiny_model(), None, [])


def sharded_again(_folder: Path):
    model = tiny_model()
    SHARDED.add(model)
    return check_unsharded(model)


def unshardable(change):
    """A feed: a model that FSDP2 cannot shard, after the change."""

    def feed(_folder: Path):
        model = tiny_model()
        change(model)
        return check_parameters(model)

    return feed


def add_scalar(model) -> None:
    model.vit.scale = nn.Parameter(torch.ones(()))


def tie_two_layers(model) -> None:
    first, second = model.vit.layers
    second.mlp.fc1.weight = first.mlp.fc1.weight


def in_training(folder: Path):
    """A run as FSDP2 has it while it trains."""
    run = trainer(folder)
    run.is_fsdp_enabled = True
    return run


def compared_under_fsdp(folder: Path):
    job = Job(tiny_model(), tiny_processor(), images([2] * 12), images([0, 1, 2, 3, 4], seed=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "ACCELERATE_USE_FSDP", "true")
        return run_job(job, config(folder), BASELINES["few"], "quick")


def compared_without_retain(folder: Path):
    job = Job(tiny_model(), tiny_processor(), images([2] * 12), images([0, 1, 2, 3, 4], seed=5))
    return run_job(job, config(folder), {"fine-tuning": {"method": "finetune"}}, "quick")


def into(place: str, **options):
    """A feed: the trainer with ``output_dir`` at a place in the folder."""
    return lambda folder: trainer(folder, output_dir=str(folder / place), **options)


def restarted(**options):
    """A feed: the trainer over the result that lies in ``out``."""
    return lambda out: trainer(Path(out).parent, **options)


REQUESTS = [
    Case("no class", request(None), "no class to forget", "forget_classes"),
    Case("an unknown class", request(["cats"]), "'cats'", "Did you mean 'cat'"),
    Case("an id too high", request([99]), "'99'", "from 0 to 4"),
    Case("a number that is no id", request(2.5), "'2.5'", "from 0 to 4"),
    Case(
        "an ambiguous class",
        request(["ox"], lambda: tiny_model(names=["ox, a", "ox, b", *NAMES[2:]])),
        "'ox'",
        "its id",
    ),
    Case("all classes", request(NAMES), "all 5 classes", "forget_classes"),
    Case("all classes but one", request(NAMES[1:]), "1 of 5 classes", "forget_classes"),
    Case("all classes, of the proxies", all_forgotten, "all 5 classes", "forget_ids"),
    Case("a class that is gone", request(["cat"], ledger(ENTRY)), "'cat' already, by request 1", "forget_classes"),
    Case("classes for a method of images", request(["cat"], method="amun", adaptive=False), "method='amun'", "unset"),
    Case(
        "a ledger of other classes",
        request(["ant"], ledger(ENTRY | {"classes": [CAT | {"label": "cow"}]})),
        "'cow'",
        "id2label",
    ),
    Case("a damaged ledger", request(["ant"], ledger({})), "'unlearning'", "restore the file"),
]

OUTPUT = [
    Case("a file as output_dir", into("file"), "/file'", "give another folder", lambda f: Path(a_file("")(f)).parent),
    Case(
        "an output_dir below a file",
        into("file/out"),
        "/file/out'",
        "another folder",
        lambda f: Path(a_file("")(f)).parent,
    ),
    Case(
        "another model in output_dir",
        restarted(),
        "holds another model",
        "new folder",
        a_result(without("unlearning_report.json")),
    ),
    Case(
        "a report that cannot be read",
        restarted(),
        "cannot read",
        "new folder",
        a_result(writing("unlearning_report.json", "[]")),
    ),
    Case(
        "the result of another request",
        restarted(forget_classes=["dog"], forget=images([3] * 12)),
        "'dog'",
        "new folder",
        a_result(),
    ),
]

TRAINING = [
    Case(
        "an adaptive run with an optimizer",
        run(optimizers=(torch.optim.SGD([torch.zeros(1)], 0.1), None)),
        "SGD",
        "adaptive=False",
    ),
    Case("another model's optimizer", of_another_model, "SGD", "model.parameters()"),
    Case("likeness of classes without a head", lambda run: run.train(), "5 labels", "tilt='none'", headless("trw")),
    Case(
        "rows of a head that is not there",
        lambda run: run.train(),
        "5 labels",
        "another method",
        headless("fisher", retain=images([0, 1, 3, 4], seed=9)),
    ),
    Case("masks without a map", lambda run: run.train(), "'mixunlearn'", "method='mixup_unlearn'", mapless),
    Case(
        "a shape of no layer",
        lambda _: spectral_norms(nn.Sequential(nn.Linear(2, 2)), {"head": (1, 2)}),
        "'head'",
        "give shapes of 0",
    ),
    Case(
        "clipping of sharded weights",
        lambda _: FastClip().on_train_begin(SimpleNamespace(fsdp=["full_shard"], deepspeed=None), None, None),
        "which fsdp shards",
        "leave fsdp out",
    ),
    Case(
        "clipping under FSDP2",
        lambda _: FastClip().on_train_begin(
            SimpleNamespace(fsdp="", deepspeed=None), None, None, object.__new__(FSDPModule)
        ),
        "FSDP version 2 shards",
        "multi_gpu.yaml",
    ),
    Case("checkpoints under FSDP2", saving_shards, "save_strategy='epoch'", "multi_gpu.yaml"),
    Case("saving while FSDP2 trains", lambda run: run.save_model(), "saves nothing", "save_strategy='no'", in_training),
    Case("another method beside FSDP2", compared_under_fsdp, "method='random_labels'", "multi_gpu.yaml"),
    Case("a scalar for FSDP2", unshardable(add_scalar), "'vit.scale'", "the shape (1,)"),
    Case(
        "channels last for FSDP2",
        unshardable(lambda model: model.to(memory_format=torch.channels_last)),
        "'vit.embeddings.patch_embeddings.projection.weight'",
        "torch.contiguous_format",
    ),
    Case(
        "a weight of two layers for FSDP2",
        unshardable(tie_two_layers),
        "'vit.layers.0.mlp.fc1.weight' and 'vit.layers.1.mlp.fc1.weight'",
        "a weight of its own",
    ),
    Case("a model that FSDP2 trained", sharded_again, "ViTForImageClassification", "copy.deepcopy"),
    Case(
        "a checkpoint for FSDP2", lambda _: check_checkpoint("run/checkpoint-4", True), "run/checkpoint-4", "Give True"
    ),
    Case("a comparison that retained data are missing for", compared_without_retain, "'fine-tuning'", "leave it out"),
    Case(
        "no head to add a row to",
        training(model=Headless(tiny_model().config).eval(), method="boundary_expand"),
        "its 5 labels",
        "boundary_shrink",
    ),
    Case(
        "nothing but the forgotten class",
        training(model=constant(50.0), method="gkt"),
        "of 100 batches",
        "raise per_device_train_batch_size",
        works=True,
    ),
    Case(
        "a transfer that is not finite",
        training(method="gkt", learning_rate=1e30, max_steps=3),
        "1e+30",
        "lower learning_rate",
        works=True,
    ),
    Case(
        "weights of a repository's own code",
        training(model=theirs(), **RETRAIN),
        "Theirs",
        "a model that transformers knows",
    ),
    Case(
        "a layer that cannot begin anew",
        training(model=unclear(), **RETRAIN),
        "'2' (Scale)",
        "method called reset_parameters",
    ),
    Case("forgotten classes among the retained", retaining(images([0, 1, 2])), "1 images of forgotten", "Leave them"),
    Case(
        "images to forget among the retained",
        retaining(images([0, 1, 2, 3], seed=4), images([0, 1], seed=4), forget_classes=None),
        "2 of the images to forget",
        "leave them out",
    ),
    Case(
        "nothing to damp",
        training(model=constant(50.0), method="ssd", retain=images([0, 1, 3, 4], seed=9), with_retain=True),
        "10 times",
        "another method",
    ),
    Case(
        "clipping past the constraint",
        run(callbacks=[FastClip()]),
        "constraint='soft'",
        "leave the callback out",
    ),
    Case("a second run", lambda run: run.train(), "SGD has been used", "new trainer", run_once, works=True),
    Case("nothing to resume", lambda run: run.train(True), "resume_from_checkpoint=True", "output_dir", untrained),
    Case("a checkpoint elsewhere", lambda run: run.train("gone"), "'gone'", "save_strategy='epoch'", fixed),
    Case("too few images to judge by", training(forget=images([2])), "1 forget images too few", "forget_views=48"),
    Case(
        "a loss that is not finite",
        training(constraint="none", learning_rate=1e30, num_train_epochs=5),
        "vit.layers.0.layernorm_before",
        "Lower learning_rate",
        works=True,
    ),
    Case(
        "a last step that is not finite",
        training(constraint="none", learning_rate=1e38, weight_decay=1e3, max_steps=1),
        "after step 1",
        "lower learning_rate",
        works=True,
    ),
    Case(
        "targets that are not finite",
        training(tilt_temperature=1e-320),
        "energy_threshold 0.9",
        "learning_rate",
        works=True,
    ),
    Case(
        "attacks that never cross",
        training(model=constant(), attack_eps=1e-6),
        "eps 4e-06",
        "raise attack_eps or attack_steps",
        works=True,
    ),
    Case(
        "images of a class that is gone",
        training(model=ledger(ENTRY)(), forget=images([2, 2]), method="amun", forget_classes=None, adaptive=False),
        "2 forget images",
        "take them out of forget_dataset",
    ),
    Case(
        "a model of one answer",
        training(model=constant(), forget=images([2]), method="amun", forget_classes=None, adaptive=False),
        "within 20.5",
        "the same answer everywhere",
        works=True,
    ),
]

CASES = [*REQUESTS, *OUTPUT, *TRAINING]
