"""The main job on real digits, as a user runs it, and over two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import images, tiny_model, tiny_processor

EXAMPLES = Path(__file__).parent.parent / "examples"
PEOPLE = ("Ada", "Grace", "John")
QUIET = ["--disable_tqdm", "true", "--use_cpu", "true"]


def run(*arguments, cwd, launcher=(sys.executable,), check=True, example="unlearn_vit.py"):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*launcher, str(EXAMPLES / example), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The example without arguments: its folder, report and printed text."""
    folder = tmp_path_factory.mktemp("digits")
    launcher = (str(Path(sys.executable).parent / "accelerate"), "launch")
    done = run(*QUIET, cwd=folder, launcher=launcher)
    out = folder / "outputs" / "digits"
    return folder, json.loads((out / "unlearning_report.json").read_text()), done.stdout


def test_digits_forget_a_class_at_no_cost(digits):
    _, report, _ = digits
    models = report["models"]
    original = (9 * models["original"]["acc_rt"] + models["original"]["acc_ut"]) / 10
    assert original >= 0.95, "the classifier to unlearn is a good one"
    assert models["unlearned"]["acc_ut"] == 0
    assert models["unlearned"]["acc_rt"] >= models["original"]["acc_rt"]
    assert models["unlearned"]["js_ut"] <= models["masked"]["js_ut"] + 0.005


def test_the_forgotten_class_comes_back_as_slowly_as_in_a_retrained_model(digits):
    """Half the masked model's distance at most: the original's weights bring it back in one step."""
    _, report, _ = digits
    relearn = {name: row["relearn"] for name, row in report["models"].items()}
    gap = {name: abs(value - relearn["retrained"]) for name, value in relearn.items()}
    assert gap["unlearned"] < gap["masked"] / 2


def test_the_table_names_every_model_and_random_labels_lose(digits):
    _, report, text = digits
    for name in ("original", "random labels", "ZS-PAG, paper's form", "ZS-PAG, last layer", "masked", "retrained"):
        assert name in text
    assert report["models"]["random labels"]["acc_rt"] < report["models"]["unlearned"]["acc_rt"] - 0.1
    assert "chosen from the held-out proxies" in text and "passes for free" in text


def test_a_users_model_and_folder_of_images(digits, tmp_path):
    """A second run takes the first one's result as its model, and an image folder as its data."""
    data = tmp_path / "data"
    for split, count in (("train", 20), ("test", 6)):
        for name in ("ant", "bee", "cat"):
            (data / split / name).mkdir(parents=True)
            for i, row in enumerate(images([0] * count, seed=len(name) + count)):
                row["image"].save(data / split / name / f"{i}.png")
    model = tiny_model(names=["ant", "bee", "cat", "dog", "elk"])
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    options = ["--model_name_or_path", "model", "--dataset_name", data, "--forget_classes", "cat", *QUIET]
    done = run(*options, "--max_forget_samples", 12, "--max_steps", 20, "--output_dir", "out", cwd=tmp_path)
    report = json.loads((tmp_path / "out" / "unlearning_report.json").read_text())
    assert report["forget_images"] == 12 and report["models"]["retrained"] is None
    assert "forgotten: cat (12 images)" in done.stdout


def test_a_yaml_file_is_enough(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "dataset_name: nowhere\nmodel_name_or_path: no/such-model\nforget_classes: [cat]\n"
    )
    done = run("--config", "run.yaml", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: cannot load an image classifier from 'no/such-model'.*\n", done.stderr)


def test_a_data_set_without_a_model_is_refused(tmp_path):
    done = run("--dataset_name", "user/data", cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: --dataset_name needs --model_name_or_path")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one(tmp_path):
    """Same proxies, readings and weights from one process with batch 8 and from two with batch 4."""
    script = tmp_path / "job.py"
    script.write_text(
        "import sys; from pathlib import Path; from tiny import trainer; from safetensors.torch import save_file\n"
        "run = trainer(Path(sys.argv[1]), max_steps=40, per_device_train_batch_size=int(sys.argv[2]), test=None)\n"
        "run.train()\n"
        "if run.is_world_process_zero():\n"
        "    state = {k: v.contiguous() for k, v in run.model.state_dict().items()}\n"
        "    save_file(state, sys.argv[1] + '/w.safetensors')\n"
    )
    tests = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for name, command in (
        ("one", [sys.executable, script, tmp_path / "one", 8]),
        ("two", [*launcher, script, tmp_path / "two", 4]),
    ):
        (tmp_path / name).mkdir()
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / name / "w.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4, msg=key)


def test_from_the_hub_shows_what_a_push_would_upload_without_a_network(tmp_path):
    done = run(*QUIET, cwd=tmp_path, example="unlearn_from_hub.py")
    shown = done.stdout.split("These files would be:")[1]
    names = [line.split()[0] for line in shown.splitlines() if line.endswith("bytes")]
    assert {"README.md", "config.json", "model.safetensors", "unlearning_report.json"} <= set(names)
    assert all("_request" not in name for name in names) and "never: _request.json" in shown


def test_two_people_in_a_row_leave_a_face_classifier(tmp_path):
    done = run(*QUIET, cwd=tmp_path, example="deletion_request.py")
    accuracies = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:5].strip() in PEOPLE}
    assert [float(a) for a in accuracies["Ada"][1:]] == [0, 0]
    assert float(accuracies["Grace"][1]) > 0.9 and float(accuracies["Grace"][2]) == 0
    assert float(accuracies["John"][2]) > 0.9
    assert done.stdout.count("are those that") == 2 and "are NOT" not in done.stdout
    ledger = json.loads((tmp_path / "outputs" / "deletion" / "without-2" / "config.json").read_text())["unlearning"]
    assert [entry["classes"][0]["label"] for entry in ledger] == ["Ada", "Grace"]
