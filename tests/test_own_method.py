"""The method of docs/writing-a-method.md, as somebody writes it: in a file of their own, outside of the package."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import images, tiny_model, tiny_processor, trainer

from zspag_hf import METHODS, UnlearningError, UnlearningReport
from zspag_hf.cli import main
from zspag_hf.methods import find_method
from zspag_hf.report.card import model_card

PAGE = (Path(__file__).parent.parent / "docs" / "writing-a-method.md").read_text(encoding="utf-8")
NAME = "my_method:Mine"
ABOUT = "Equal shares of all classes that stay"  # the beginning of its description
FAST = ["--max_steps", "3", "--disable_tqdm", "--use_cpu"]


def written(page):
    """The code between the page's marks."""
    (code,) = re.findall(r"<!-- my_method\.py -->\n```python\n(.*?)```\n<!-- /my_method\.py -->", page, re.DOTALL)
    return code


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """The folder that a user works in: the module, a model and data."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "my_method.py").write_text(written(PAGE), encoding="utf-8")
    (folder / "not_one.py").write_text("class Mine:\n    pass\n\nwords = 'no class'\n", encoding="utf-8")
    (folder / "broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split, labels, seed in (("train", [0, 1, 2, 3, 4] * 6, 1), ("test", [0, 1, 2, 3, 4] * 4, 2)):
        images(labels, seed=seed).to_parquet(folder / "data" / f"{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", ["", *sys.path])
        yield folder
    for name in ("my_method", "not_one", "broken"):
        sys.modules.pop(name, None)


def described(report, strength):
    """Whether report and card name the method, its options and what it does."""
    assert report.method == report.request["method"] == NAME and report.zero_shot
    assert report.method_options["strength"] == strength and set(report.method_options) == {
        *("strength", "learning_rate", "num_train_epochs", "optim", "optim_args", "weight_decay")
    }
    assert report.given.get("strength", 1.0) == strength and report.about[0].startswith(ABOUT)
    card = " ".join(str(model_card(report)).split())
    assert ABOUT in card and f"--method {NAME}" in card and (f"--strength {strength}" in card) is (strength != 1.0)
    return True


class TestTrainer:
    def test_by_its_name_it_is_as_any_other(self, tmp_path):
        assert NAME not in METHODS
        job = trainer(tmp_path, method=NAME, max_steps=3)
        job.train()
        assert described(job.report, 1.0)
        targets = torch.tensor([0.25, 0.25, 0, 0.25, 0.25]).repeat(12, 1)
        assert torch.equal(job.run.plan.targets, targets) and job.run.plan.trainable == list(job.run.layers)
        logits = job.run.classifier.predict(job.run.forget.pixels)
        job.save_model()
        report = UnlearningReport.load(job.args.output_dir)
        assert described(report, 1.0)
        after = torch.nn.functional.cross_entropy(logits, targets)
        job.model.load_state_dict(job.original)
        before = torch.nn.functional.cross_entropy(job.run.classifier.predict(job.run.forget.pixels), targets)
        assert after < before

    def test_its_option_is_read_by_its_loss(self, tmp_path):
        kind, moved = find_method(NAME), []
        for strength in (1.0, 2.0):
            job = trainer(tmp_path / str(strength), method=kind(strength=strength), max_steps=1, learning_rate=0.5)
            job.train()
            assert described(job.report, strength)
            name = f"{job.run.head}.weight"
            moved.append(job.run.layers[job.run.head].weight.detach() - job.original[name])
        assert moved[0].any()
        torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-3, atol=1e-6)

    def test_another_value_of_its_option_is_another_run_to_resume(self, tmp_path):
        kept = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        first, again, other = (trainer(tmp_path, method=find_method(NAME)(strength=x), **kept) for x in (1.0, 1.0, 3.0))
        first.train()
        again.train(resume_from_checkpoint=True)
        assert again.run.stages.folder == first.run.stages.folder
        assert all(torch.equal(value, first.model.state_dict()[n]) for n, value in again.model.state_dict().items())
        other.train(resume_from_checkpoint=True)
        assert other.args.output_dir == first.args.output_dir and other.run.stages.folder != first.run.stages.folder

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("my_method", "method='my_method' is not one of 'zspag', .*, nor package.module:Class"),
            ("my_method:Yours", "method='my_method:Yours' cannot be imported .*Yours.*: give package.module:Class"),
            ("no_such_module:Mine", "method='no_such_module:Mine' cannot be imported .*no_such_module"),
            ("broken:Mine", "method='broken:Mine' cannot be imported .*nothing_of_this_name"),
            ("not_one:Mine", "method='not_one:Mine' is no subclass of zspag_hf.methods.Method: derive it"),
            ("not_one:words", "method='not_one:words' is no subclass of zspag_hf.methods.Method"),
            ("my_method:", "method='my_method:' is not one of"),
        ],
    )
    def test_what_is_no_method_is_refused_with_the_mend(self, name, message):
        with pytest.raises(UnlearningError, match=message):
            find_method(name)


class TestCommand:
    BASE = ["--model_name_or_path", "model", "--dataset_name", "data", "--forget_classes", "cat"]

    def test_help_shows_its_options_beside_those_of_every_run(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["unlearn", "--method", NAME, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0 and "--strength X" in text and "Factor of the loss. (default: 1.0)" in text
        assert "--learning_rate" in text and "--scope" not in text

    def test_its_ranges_are_checked_before_anything_is_loaded(self, capsys):
        for given, message in (
            ("0", "strength=0.0 must be above 0"),
            ("much", "strength: invalid float value: 'much'"),
        ):
            assert main(["unlearn", "--method", NAME, "--strength", given, *self.BASE]) == 2
            printed = capsys.readouterr()
            assert printed.out == "" and message in printed.err, printed.err
        assert main(["unlearn", "--strength", "2", *self.BASE]) == 2, "it is no option of the default method"
        assert "--strength" in capsys.readouterr().err

    @pytest.mark.slow
    def test_unlearn(self, place, capsys):
        argv = ["unlearn", "--method", NAME, "--strength", "2", *self.BASE, *FAST, "--json", "--output_dir", "out"]
        assert main(argv) == 0
        told = json.loads(capsys.readouterr().out)["report"]
        report = UnlearningReport.load("out")
        assert described(report, 2.0) and report.models["unlearned"]["acc_rt"] is not None
        assert told["method"] == NAME and told["method_options"]["strength"] == 2.0
        card = (place / "out" / "README.md").read_text(encoding="utf-8")
        assert ABOUT in card and "--strength 2.0" in card and f"--method {NAME}" in card

    @pytest.mark.slow
    def test_a_file_of_options_may_name_it(self, place, capsys):
        options = {"model_name_or_path": "model", "dataset_name": "data", "forget_classes": ["cat"], "use_cpu": True}
        options |= {"method": NAME, "strength": 4, "max_steps": 3, "disable_tqdm": True, "output_dir": "by_file"}
        (place / "run.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        assert main(["unlearn", "--config", "run.yaml"]) == 0
        assert described(UnlearningReport.load("by_file"), 4.0)

    @pytest.mark.slow
    def test_compare_has_it_in_rows_of_its_own(self, place, capsys, monkeypatch):
        """The page's own rows, and one beside them."""
        (rows,) = (text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if NAME in text)
        rows += "weak: {method: random_labels, learning_rate: 0.001}\n"
        (place / "rows.yaml").write_text(rows, encoding="utf-8")
        own = ["--proxies_per_class", "4", "--attack_eps", "0.5"]
        seen, kind = set(), find_method(NAME)
        loss = kind.compute_loss

        def watched(method, run, model, inputs):
            seen.add((method.strength, run.args.num_train_epochs, run.args.max_steps))
            return loss(method, run, model, inputs)

        monkeypatch.setattr(kind, "compute_loss", watched)
        argv = ["compare", "--settings", "rows.yaml", *self.BASE, *own, *FAST, "--output_dir", "compared"]
        assert main(argv) == 0
        report = UnlearningReport.load("compared")
        names = yaml.safe_load(rows).keys()
        assert report.method == "zspag" and names <= report.models.keys() and len(names) == 3
        assert all(report.models[name]["acc_rt"] is not None for name in names)
        assert seen == {(2, 10, 3), (2, 20, 3)}
        printed = capsys.readouterr().out
        assert all(name in printed for name in names)
