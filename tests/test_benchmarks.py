"""examples/benchmarks: each script fills its part of the results, with finite numbers and no path of this machine.

They run in this process, and what they measure in fresh ones too; one test starts a process.
"""

import contextlib
import io
import json
import math
import os
import platform
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from cases import MODELS

sys.path.append(str(Path(__file__).parent.parent / "examples" / "benchmarks"))

import measure
from literal import influence_by_image, influence_by_label, largest_angle, stacked_bases
from measure import MARK, command_line, in_fresh_process, peak_mb, reset_peak

from zspag_hf.pipeline.gradients import layer_gradients
from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.influence import label_influence
from zspag_hf.pipeline.layers import constrained_layers
from zspag_hf.pipeline.subspaces import Spectrum

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"
PARTS = {
    "overhead": {"ViT-B/16", "ResNet-50", "MobileNetV2", "ViT of 32 pixels"},
    "speed": {"pipeline", "subspaces", "influence", "attack", "memory"},
    "scaling": {"forget images", "proxies", "classes", "width", "processes"},
}
SMALL = ("--size", "small", "--repeats", 1)


def run(script, folder, *arguments):
    """Run a script in a folder, as ``python script.py``; returns what it printed."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(BENCHMARKS / f"{script}.py"), *map(str, arguments)])
        patch.setattr(measure, "in_fresh_process", in_this_process)
        patch.setattr("subprocess.run", as_launched)
        runpy.run_path(sys.argv[0], run_name="__main__")
    return told.getvalue()


def in_this_process(function, *given):
    """What a fresh process would measure; 1 MB for what fits into memory that this one has left over."""
    return function(*given) or 1.0


def as_launched(command, env, **_):
    """The script that a launcher is to start in several processes, in this one."""
    launcher, own = command[1 : command.index(sys.argv[0])], command[command.index(sys.argv[0]) :]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert command[0] == sys.executable and launcher in ([], several) and env["OMP_NUM_THREADS"] == "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", own)
        runpy.run_path(own[0], run_name="__main__")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder and results of all three scripts."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for script in PARTS:
        run(script, folder, *SMALL, "--output", "results.json")
    return folder, json.loads((folder / "results.json").read_text())


def numbers(rows):
    for row in rows:
        yield from row["found"].values() if isinstance(row["found"], dict) else [row["found"]]


def check(part):
    values = list(numbers(part["rows"]))
    assert values and all(math.isfinite(value) for value in values)
    assert {"cpu", "cores", "threads", "gpu"} == set(part["machine"]) and "torch" in part["versions"]


@pytest.mark.slow
class TestWholeScripts:
    @pytest.mark.parametrize("script", PARTS)
    def test_every_part_is_there_with_finite_numbers(self, results, script):
        parts = results[1][script]
        assert set(parts) == PARTS[script]
        for part in parts.values():
            check(part)

    def test_the_results_hold_no_path_and_no_name_of_this_machine(self, results):
        folder, parts = results
        text = json.dumps(parts)
        for secret in (str(folder), str(BENCHMARKS), str(Path.home()) + os.sep, sys.prefix):
            assert secret not in text
        assert not re.search(rf"\b{re.escape(platform.node())}\b", text)

    def test_the_page_has_every_row_below_its_script(self, results):
        folder, scripts = results
        (folder / "RESULTS.md").write_text(f"# Results\n\nBy hand.\n\n{MARK}\n\n## old.py\n")
        run("measure", folder, "--results", "results.json", "--output", "RESULTS.md")
        assert (folder / "RESULTS.md").read_text().startswith(f"# Results\n\nBy hand.\n\n{MARK}\n")
        sections = (folder / "RESULTS.md").read_text().split("\n## ")[1:]
        assert [section.split("\n")[0] for section in sections] == [f"{script}.py" for script in scripts]
        for section, parts in zip(sections, scripts.values(), strict=True):
            for part in parts.values():
                assert f"`{part['command']}`" in section
                assert all(f"\n| {row['measure']} | " in section for row in part["rows"])

    def test_one_part_again_leaves_the_others(self, results):
        folder, before = results
        run("speed", folder, "--size", "small", "--repeats", 2, "--parts", "attack", "--output", "results.json")
        after = json.loads((folder / "results.json").read_text())
        assert "--parts attack" in after["speed"].pop("attack")["command"]
        before["speed"].pop("attack")
        assert after == before

    def test_a_large_model_is_timed_by_stage_and_its_operations_are_counted(self, tmp_path):
        options = ("--size", "small", "--images", 8, "--max_steps", 4, "--peak_tflops", 1)
        run("large", tmp_path, *options, "--output", "results.json")
        (part,) = json.loads((tmp_path / "results.json").read_text())["large"].values()
        check(part)
        time, memory, operations, share = (row["found"] for row in part["rows"])
        assert {"proxies", "subspaces", "training"} < set(operations) == set(share) < set(time)
        assert set(operations) < set(memory)


def test_a_part_of_a_script(tmp_path):
    text = run("overhead", tmp_path, *SMALL, "--models", "ViT of 32 pixels", "--output", "results.json")
    (part,) = json.loads((tmp_path / "results.json").read_text())["overhead"].values()
    check(part)
    assert all(f"| {row['measure']} | " in text for row in part["rows"])


def test_a_command_names_neither_model_nor_data_nor_output():
    given = ["/home/me/speed.py", "--model_name_or_path", "/home/me/vit", "--dataset_name=/data", "--output", "/x.json"]
    assert command_line([*given, "--forget_classes", "cat"]) == (
        "python examples/benchmarks/speed.py --model_name_or_path MODEL --dataset_name DATA --forget_classes cat"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux")
def test_the_peak_is_what_was_held_since_it_was_reset():
    torch.ones(10**8)  # 400 MB before count for nothing
    before = reset_peak()
    torch.ones(5 * 10**7)
    assert 195 < peak_mb() - before < 210


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux")
def test_a_fresh_process_has_held_nothing_of_this_one():
    held = torch.ones(10**8)
    status = in_fresh_process(Path.read_text, Path("/proc/self/status"))
    told = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
    assert int(told["Pid"]) != os.getpid() and int(told["VmHWM"]) < held.nbytes / 1024


@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet_v2"])
def test_the_literal_forms_compute_the_same(name):
    case = next(case for case in MODELS if case.name == name)
    classifier = case.classifier()
    pixels = case.pixels(12)
    layers = constrained_layers(classifier.model, lambda: classifier(pixels))
    labels = classifier.predict(pixels).argsort(1)[:, 1]
    streamed = Spectrum(collect_grams(classifier, pixels, labels, layers)).bases(0.9)
    assert largest_angle(streamed, stacked_bases(classifier, pixels, labels, layers, 0.9)) < 1e-6
    v = layer_gradients(classifier, pixels, labels, layers)
    expected = label_influence(classifier, pixels, v, layers)
    by_image = influence_by_image(classifier, pixels[:2], v, layers)
    torch.testing.assert_close(by_image, expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(influence_by_label(classifier, pixels, v, layers, 5), expected, rtol=1e-5, atol=1e-6)
