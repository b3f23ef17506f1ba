"""The examples as scripts: the main job on real digits, a user's own model and data, and requests one after another.

They run in this process, on classifiers with fewer patches that are trained for fewer epochs than theirs.
"""

import contextlib
import copy
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import images, tiny_model, tiny_processor

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import digits
import faces

EXAMPLES = Path(__file__).parent.parent / "examples"
PEOPLE = ("Ada", "Grace", "John")
QUIET = ("--disable_tqdm", "true", "--use_cpu", "true")
EPOCHS, FACES = 20, 24  # of every classifier; pictures of a person


def kept_training():
    """A ``train_classifier`` of EPOCHS that keeps what it has trained, so that no two tests train the same."""
    kept, train = {}, digits.train_classifier

    def quick(model, processor, dataset, without, config, epochs=0, augment=True):
        key = (*model.config.label2id, len(dataset), *without, config.seed)
        if key not in kept:
            train(model, processor, dataset, without, config, EPOCHS, augment)
            kept[key] = copy.deepcopy(model.state_dict())
        model.load_state_dict(kept[key])
        return model.eval()

    return quick


@pytest.fixture(scope="module")
def run():
    """name of an example, folder, options -> its exit status, and what it printed."""
    build, draw = digits.digits_model, faces.faces_dataset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "train_classifier", kept_training())
        patch.setattr(digits, "digits_model", lambda names, seed, size=8, patch=2: build(names, seed, size, size // 2))
        patch.setattr(faces, "faces_dataset", lambda count=FACES, seed=0: draw(count, seed))
        patch.setattr("zspag_hf.report.report.draw_figures", lambda report: {})  # which takes longer than to forget

        def start(example, folder, *options):
            out, err = io.StringIO(), io.StringIO()
            patch.chdir(folder)
            patch.setattr(sys, "argv", [f"{example}.py", *QUIET, *map(str, options)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
                runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
            return SimpleNamespace(status=ended.value.code, out=out.getvalue(), err=err.getvalue())

        yield start


# ------------------------------------------------------------------------------------------------- the main job


@pytest.fixture(scope="module")
def without_the_3(run, tmp_path_factory):
    """The example without a model: its report and printed text."""
    folder = tmp_path_factory.mktemp("digits")
    done = run("unlearn_vit", folder, "--max_steps", 60, "--max_proxies", 300)
    assert done.status == 0
    report = folder / "outputs" / "digits" / "unlearning_report.json"
    return json.loads(report.read_text()), done.out


@pytest.mark.slow
class TestWithoutAModel:
    def test_digits_forget_a_class_at_no_cost(self, without_the_3):
        models = without_the_3[0]["models"]
        original = (9 * models["original"]["acc_rt"] + models["original"]["acc_ut"]) / 10
        assert original >= 0.95, "the classifier to unlearn is a good one"
        assert models["unlearned"]["acc_ut"] == 0
        assert models["unlearned"]["acc_rt"] >= models["original"]["acc_rt"]
        assert models["unlearned"]["js_ut"] <= models["masked"]["js_ut"] + 0.005

    def test_the_forgotten_class_comes_back_as_slowly_as_in_a_retrained_model(self, without_the_3):
        """Half the masked model's distance at most: the original's weights bring it back in one step."""
        relearn = {name: row["relearn"] for name, row in without_the_3[0]["models"].items()}
        gap = {name: abs(value - relearn["retrained"]) for name, value in relearn.items()}
        assert gap["unlearned"] < gap["masked"] / 2

    def test_the_table_names_every_model_and_random_labels_lose(self, without_the_3):
        report, text = without_the_3
        for name in ("original", "random labels", "ZS-PAG, paper's form", "ZS-PAG, last layer", "masked", "retrained"):
            assert name in text
        assert report["models"]["random labels"]["acc_rt"] < report["models"]["unlearned"]["acc_rt"] - 0.1
        assert "judged by held-out proxies" in text and "passes for free" in text


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a user's model, and data as a folder of images."""
    folder = tmp_path_factory.mktemp("own")
    for split, count in (("train", 20), ("test", 6)):
        for name in ("ant", "bee", "cat"):
            (folder / "data" / split / name).mkdir(parents=True)
            for i, row in enumerate(images([0] * count, seed=len(name) + count)):
                row["image"].save(folder / "data" / split / name / f"{i}.png")
    tiny_model(names=["ant", "bee", "cat", "dog", "elk"]).save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    return folder


OWN = ("--model_name_or_path", "model", "--dataset_name", "data", "--forget_classes", "cat")
FEW = ("--max_forget_samples", "12", "--proxies_per_class", "4", "--attack_eps", "0.5", "--max_steps", "10")


def test_a_users_model_and_folder_of_images(run, own):
    done = run("unlearn_vit", own, *OWN, *FEW, "--output_dir", "out")
    assert done.status == 0 and "forgotten: cat (12 images)" in done.out
    report = json.loads((own / "out" / "unlearning_report.json").read_text())
    assert report["forget_images"] == 12 and report["models"]["retrained"] is None
    assert report["method"] == "zspag" and report["given"]["max_steps"] == 10


@pytest.mark.slow
def test_the_command_of_the_readme_launches_it(own):
    launcher = Path(sys.executable).parent / "accelerate"
    command = [launcher, "launch", EXAMPLES / "unlearn_vit.py", *QUIET, *OWN, "--method", "neggrad", "--max_steps", 2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*map(str, command), "--output_dir", "launched", "--baselines", "none"]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads((own / "launched" / "unlearning_report.json").read_text())["method"] == "neggrad"
    assert (own / "launched" / "unlearning_report.html").exists() and any((own / "launched" / "figures").iterdir())


def test_a_yaml_file_is_enough(run, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "dataset_name: nowhere\nmodel_name_or_path: no/such-model\nforget_classes: [cat]\n"
    )
    done = run("unlearn_vit", tmp_path, "--config", "run.yaml")
    assert done.status == 2
    assert re.fullmatch(r"error: cannot load an image classifier from 'no/such-model'.*\n", done.err)


def test_a_data_set_without_a_model_is_refused(run, tmp_path):
    done = run("unlearn_vit", tmp_path, "--dataset_name", "user/data")
    assert done.status == 2 and done.err.startswith("error: --dataset_name needs --model_name_or_path")


# -------------------------------------------------------------------------------------------------- the other two


@pytest.mark.slow
def test_from_the_hub_shows_what_a_push_would_upload_without_a_network(run, tmp_path):
    done = run("unlearn_from_hub", tmp_path, "--max_steps", 20, "--max_proxies", 90)
    assert done.status == 0
    shown = done.out.split("These files would be:")[1]
    names = [line.split()[0] for line in shown.splitlines() if line.endswith("bytes")]
    assert {"README.md", "config.json", "model.safetensors", "unlearning_report.json"} <= set(names)
    assert all("_request" not in name for name in names) and "never: _request.json" in shown


@pytest.mark.slow
def test_two_people_in_a_row_leave_a_face_classifier(run, tmp_path):
    done = run("deletion_request", tmp_path, "--max_steps", 20)
    assert done.status == 0
    accuracies = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line[:5].strip() in PEOPLE}
    assert [float(a) for a in accuracies["Ada"][1:]] == [0, 0]
    assert float(accuracies["Grace"][1]) > 0.9 and float(accuracies["Grace"][2]) == 0
    assert float(accuracies["John"][2]) >= 0.9
    assert done.out.count("are those that") == 2 and "are NOT" not in done.out
    ledger = json.loads((tmp_path / "outputs" / "deletion" / "without-2" / "config.json").read_text())["unlearning"]
    assert [entry["classes"][0]["label"] for entry in ledger] == ["Ada", "Grace"]
