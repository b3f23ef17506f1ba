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
from fsdp2_job import JOBS
from safetensors.torch import load_file
from tiny import tiny_model
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from transformers import AutoModelForImageClassification

import zspag_hf
from zspag_hf import UnlearningError
from zspag_hf.sharding import check_sharding

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

    def test_the_model_was_sharded_in_training_and_is_whole_after_it(self, results):
        for name in JOBS:
            facts = results[2][name][1]
            assert facts["kinds"] == ["DTensor"] and results[1][name][1]["kinds"] == ["Parameter"], name
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

    def test_every_image_counts_once_before_and_after_training(self, results):
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
        ("a Conv1D layer, whose rows are inputs,", {"model": "imagegpt"}),
    ],
)
def test_what_does_not_go_with_fsdp2_is_refused_by_name(message, given):
    def check(plugin_options=None, parallelism=None, model="vit", optimizer=None, **options):
        state = SimpleNamespace(fsdp_plugin=plugin(**(plugin_options or {})))
        args = SimpleNamespace(**({"method": "zspag", "save_strategy": "no", "bf16": False} | options))
        network = next(case for case in MODELS if case.name == model).make()
        check_sharding(SimpleNamespace(state=state, parallelism_config=parallelism), args, network, optimizer)

    check()
    given = dict(given)
    with pytest.raises(UnlearningError, match=f"{message} does not go with FSDP2"):
        check(given.pop("plugin", None), **given)
