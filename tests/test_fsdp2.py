"""FSDP2 in two processes gives what one process gives, and ends with a whole model (tests/fsdp2_job.py runs there)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsdp2_job
import pytest
import torch
from cases import MODELS
from fsdp2_job import JOBS, repeating_network
from safetensors.torch import load_file
from tiny import tiny_model
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from transformers import AutoModelForImageClassification

import zspag_hf
from zspag_hf import FastClip, UnlearningError
from zspag_hf.parallel.sharding import check_parameters, check_sharding, check_unsharded, sharded

RECIPE = Path(zspag_hf.__file__).parent / "accelerate_configs" / "fsdp2.yaml"
LIMIT = 600  # seconds, so that processes that wait for one another fail the test
needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of processes -> job -> (weights, facts); and the folder of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(RECIPE), "--num_processes", "2"]
    script = [fsdp2_job.__file__, str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = {1: {}, 2: {}, "folder": two}
    for name in JOBS:
        found[1][name] = fsdp2_job.job(name, one)
        facts = json.loads((two / f"{name}.json").read_text())
        found[2][name] = (load_file(two / f"{name}.safetensors"), facts)
    return found


@needs_gloo
class TestTwoProcesses:
    """Constraints on cut groups, every architecture and the refusals are asserted in the processes themselves."""

    def test_the_model_is_sharded_in_steps_and_whole_where_it_is_read(self, results):
        for name in JOBS:
            facts = results[2][name][1]
            assert facts["kinds"] == {"training_step": ["DTensor"], "prediction_step": ["Parameter"]}, name
            assert results[1][name][1]["kinds"]["training_step"] == ["Parameter"], name
            assert facts["model"] == results[1][name][1]["model"], name
            assert {k: v.shape for k, v in results[2][name][0].items()} == {
                k: v.shape for k, v in results[1][name][0].items()
            }

    def test_weights_are_those_of_one_process(self, results):
        for name in JOBS:
            one, two = results[1][name][0], results[2][name][0]
            for key, weight in one.items():
                torch.testing.assert_close(two[key], weight, atol=1e-5, rtol=0, msg=lambda m, n=name, k=key: n + k + m)

    def test_the_runs_moved_the_weights_by_far_more_than_they_differ(self, results):
        for name, options in JOBS.items():
            start = tiny_model(options.get("family", "vit")).state_dict()
            assert max(float((weight - start[key]).abs().max()) for key, weight in results[2][name][0].items()) > 1e-2

    def test_the_constraint_holds(self, results):
        found = [results[2][name][1]["leak"] for name in JOBS if name.startswith("hard")]
        assert len(found) == 2 and max(found) < 1e-5

    def test_readings_and_choices(self, results):
        for name in (name for name in JOBS if name.startswith("adaptive")):
            one, two = (results[count][name][1]["curve"] for count in (1, 2))
            assert len(one) == len(two) > 2 and one[-1]["phase"] == "head"
            for mine, theirs in zip(one, two, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5), name

    def test_every_image_counts_once_before_in_and_after_training(self, results):
        for name in JOBS:
            assert results[1][name][1]["counts"] == results[2][name][1]["counts"], name

    def test_the_saved_model_is_the_whole_one(self, results):
        for name in JOBS:
            saved = AutoModelForImageClassification.from_pretrained(results["folder"] / name / "out").state_dict()
            assert all(torch.equal(saved[key], weight) for key, weight in results[2][name][0].items()), name


def plugin(**options):
    usual = {"cpu_offload": OffloadPolicy(), "auto_wrap_policy": None, "ignored_modules": None}
    usual |= {"cpu_ram_efficient_loading": False, "activation_checkpointing": False}
    return SimpleNamespace(**(usual | options))


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("method='salun'", {"method": "salun"}),
        ("save_strategy='epoch'", {"save_strategy": "epoch"}),
        ("bf16=True", {"bf16": True}),
        ("a given SGD", {"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)}),
        ("'fsdp_auto_wrap_policy'", {"plugin": {"auto_wrap_policy": print}}),
        ("'fsdp_offload_params: true'", {"plugin": {"cpu_offload": CPUOffloadPolicy()}}),
        ("'fsdp_cpu_ram_efficient_loading: true'", {"plugin": {"cpu_ram_efficient_loading": True}}),
        ("'fsdp_activation_checkpointing: true'", {"plugin": {"activation_checkpointing": True}}),
        ("'fsdp_ignored_modules'", {"plugin": {"ignored_modules": "head"}}),
        ("'parallelism_config'", {"parallelism": object()}),
        ("the callback FastClip, which must see whole weights,", {"callbacks": [FastClip()]}),
        ("a Conv1D layer, whose rows are inputs,", {"model": "imagegpt"}),
    ],
)
def test_what_does_not_go_with_fsdp2_is_refused_by_name(message, given):
    def check(plugin_options=None, parallelism=None, model="vit", optimizer=None, callbacks=(), **options):
        state = SimpleNamespace(fsdp_plugin=plugin(**(plugin_options or {})))
        args = SimpleNamespace(**({"method": "zspag", "save_strategy": "no", "bf16": False} | options))
        network = next(case for case in MODELS if case.name == model).make()
        accelerator = SimpleNamespace(state=state, parallelism_config=parallelism)
        check_sharding(accelerator, args, network, optimizer, callbacks)

    check()
    given = dict(given)
    with pytest.raises(UnlearningError, match=f"{message} does not go with FSDP2"):
        check(given.pop("plugin", None), **given)


def test_weights_that_one_block_shares_are_no_reason_to_refuse():
    check_parameters(repeating_network())


@pytest.mark.parametrize("kind", ["block and rest", "block within a block"])
def test_a_weight_that_is_gathered_with_two_modules_is_refused(kind):
    model = repeating_network()
    if kind == "block and rest":
        model.head.weight = model.layers[0].inner[0].weight
    else:
        model.layers[0].first.weight = model.layers[0].inner[0].weight
    with pytest.raises(UnlearningError, match="are one weight, which FSDP2 would shard as two"):
        check_parameters(model)


def test_a_model_whose_sharding_did_not_begin_may_be_sharded_later():
    model = tiny_model()
    with pytest.raises(ValueError, match="process group"), sharded(model):
        pass
    check_unsharded(model)


WITHOUT_DISTRIBUTED = """
import sys
from torch import distributed
distributed.is_available = lambda: False
for name in ("device_mesh", "fsdp", "tensor"):
    sys.modules[f"torch.distributed.{name}"] = None
from zspag_hf import METHODS, FastClip, UnlearningTrainer
from zspag_hf.parallel.sharding import unsharded
FastClip()
with unsharded(None):
    print(len(METHODS), UnlearningTrainer.__name__)
"""


def test_the_library_imports_where_torch_was_built_without_distributed():
    done = subprocess.run([sys.executable, "-c", WITHOUT_DISTRIBUTED], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [str(len(zspag_hf.METHODS)), "UnlearningTrainer"]
