"""examples/benchmarks: each script fills its part of the results, with finite numbers and no path of this machine."""

import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import MODELS

sys.path.append(str(Path(__file__).parent.parent / "examples" / "benchmarks"))

from literal import influence_by_image, influence_by_label, largest_angle, stacked_bases
from measure import MARK, command_line, in_fresh_process, peak_mb, reset_peak

from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.influence import label_influence, mean_gradient
from zspag_hf.pipeline.layers import constrained_layers
from zspag_hf.pipeline.subspaces import Spectrum

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"
PARTS = {
    "overhead": {"ViT-B/16", "ResNet-50", "MobileNetV2", "ViT of 32 pixels"},
    "speed": {"pipeline", "subspaces", "influence", "attack", "memory"},
    "scaling": {"forget images", "proxies", "classes", "width", "processes"},
}


def run(script, *arguments, cwd):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder and results of all three scripts."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for script in PARTS:
        run(f"{script}.py", "--size", "small", "--repeats", 1, "--output", "results.json", cwd=folder)
    return folder, json.loads((folder / "results.json").read_text())


def numbers(rows):
    for row in rows:
        yield from row["found"].values() if isinstance(row["found"], dict) else [row["found"]]


@pytest.mark.parametrize("script", PARTS)
def test_every_part_is_there_with_finite_numbers(results, script):
    found = results[1][script]
    assert set(found) == PARTS[script]
    for part in found.values():
        values = list(numbers(part["rows"]))
        assert values and all(math.isfinite(value) for value in values)
        assert {"cpu", "cores", "threads", "gpu"} == set(part["machine"]) and "torch" in part["versions"]


def test_the_results_hold_no_path_and_no_name_of_this_machine(results):
    folder, found = results
    text = json.dumps(found)
    for secret in (str(folder), str(BENCHMARKS), str(Path.home()) + os.sep, sys.prefix):
        assert secret not in text
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)


def test_the_page_has_every_row_below_its_script(results):
    folder, found = results
    (folder / "RESULTS.md").write_text(f"# Results\n\nBy hand.\n\n{MARK}\n\n## old.py\n")
    run("measure.py", "--results", "results.json", "--output", "RESULTS.md", cwd=folder)
    assert (folder / "RESULTS.md").read_text().startswith(f"# Results\n\nBy hand.\n\n{MARK}\n")
    sections = (folder / "RESULTS.md").read_text().split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == [f"{script}.py" for script in found]
    for section, parts in zip(sections, found.values(), strict=True):
        for part in parts.values():
            assert f"`{part['command']}`" in section
            assert all(f"\n| {row['measure']} | " in section for row in part["rows"])


def test_one_part_again_leaves_the_others(results):
    folder, before = results
    run("speed.py", "--size", "small", "--repeats", 2, "--parts", "attack", "--output", "results.json", cwd=folder)
    after = json.loads((folder / "results.json").read_text())
    assert "--parts attack" in after["speed"].pop("attack")["command"]
    before["speed"].pop("attack")
    assert after == before


def test_a_command_names_neither_model_nor_data_nor_output():
    given = ["/home/me/speed.py", "--model_name_or_path", "/home/me/vit", "--dataset_name=/data", "--output", "/x.json"]
    assert command_line([*given, "--forget_classes", "cat"]) == (
        "python examples/benchmarks/speed.py --model_name_or_path MODEL --dataset_name DATA --forget_classes cat"
    )


def peak_of(megabytes):
    before = reset_peak()
    torch.ones(megabytes * 10**6 // 4)
    return peak_mb() - before


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux")
def test_the_peak_is_what_the_function_itself_held():
    torch.ones(10**8)  # 400 MB in this process count for nothing
    small, large = (in_fresh_process(peak_of, megabytes) for megabytes in (50, 250))
    assert 45 < small < 80 and 195 < large - small < 205


@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet_v2"])
def test_the_literal_forms_compute_the_same(name):
    case = next(case for case in MODELS if case.name == name)
    classifier = case.classifier()
    pixels = case.pixels(12)
    layers = constrained_layers(classifier.model, lambda: classifier(pixels))
    labels = classifier.predict(pixels).argsort(1)[:, 1]
    streamed = Spectrum(collect_grams(classifier, pixels, labels, layers)).bases(0.9)
    assert largest_angle(streamed, stacked_bases(classifier, pixels, labels, layers, 0.9)) < 1e-6
    v = mean_gradient(classifier, pixels, labels, layers)
    expected = label_influence(classifier, pixels, v, layers)
    by_image = influence_by_image(classifier, pixels[:2], v, layers)
    torch.testing.assert_close(by_image, expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(influence_by_label(classifier, pixels, v, layers, 5), expected, rtol=1e-5, atol=1e-6)
