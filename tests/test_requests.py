"""What a request means, and what stays of it: rows, ledger, commitment, requests in a row."""

import json
import stat
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import NAMES, config, images, tiny_model, tiny_processor, trainer

from zspag_hf import UnlearningConfig, UnlearningError, UnlearningReport, UnlearningTrainer
from zspag_hf.data.labels import rows_of_classes
from zspag_hf.data.request import (
    commitment,
    draw_nonce,
    earlier_requests,
    forgotten_ids,
    proves,
    resolve_request,
    select_rows,
)
from zspag_hf.trainer.results import original_classifier

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from digits import digits_dataset, digits_model, train_classifier

FIVE = range(5)


def entry(*labels, **more):
    return {"classes": [{"id": NAMES.index(label), "label": label} for label in labels], "date": "2026-01-01"} | more


class TestRows:
    @pytest.fixture
    def people(self):
        columns = {"label": [0, 1, 1, 2], "person": ["ann", "bob", "ann", "cy"], "year": [1999, 2001, 2001, 1999]}
        return Dataset.from_dict(columns)

    def test_all_images_of_the_classes_where_nothing_else_is_said(self, people):
        assert select_rows(people, class_ids=[1], mapping=FIVE) == [1, 2]

    def test_by_index_in_the_order_of_the_data(self, people):
        assert select_rows(people, class_ids=[1], mapping=FIVE, indices=[3, 0]) == [0, 3]

    def test_by_a_columns_values_given_as_text(self, people):
        assert select_rows(people, class_ids=[], mapping=FIVE, column="person", values=["ann"]) == [0, 2]
        assert select_rows(people, class_ids=[], mapping=FIVE, column="year", values=["1999"]) == [0, 3]

    def test_by_the_names_of_a_class_label(self):
        found = select_rows(images([0, 2, 2]), class_ids=[], mapping=FIVE, column="label", values=["cat"])
        assert found == [1, 2]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"indices": [4]}, "no image 4: .* from 0 to 3"),
            ({"indices": [-1]}, "no image -1"),
            ({"indices": [1, 2, 1]}, "image 1 is named twice"),
            ({"indices": [1], "column": "person", "values": ["ann"]}, "give one of the two"),
            ({"column": "person"}, "belong together"),
            ({"values": ["ann"]}, "belong together"),
            ({"column": "name", "values": ["ann"]}, r"no column 'name'; its columns are .*person"),
            ({"column": "label", "values": ["9"]}, "holds '9'"),
            ({"column": "person", "values": ["anne"]}, "holds 'anne'. Did you mean 'ann'"),
            ({"class_ids": []}, "give forget_indices, or forget_column"),
            ({"class_ids": [4]}, "none of the data set's 4 images"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, people, options, said):
        with pytest.raises(UnlearningError, match=said):
            select_rows(people, **({"class_ids": [1], "mapping": FIVE} | options))


class TestLedger:
    def request(self, classes, *history, names=NAMES, method="zspag"):
        model_config = tiny_model(names=names).config
        model_config.unlearning = list(history)
        return resolve_request(classes, names, model_config, method)

    def test_a_fresh_model_has_none(self):
        assert earlier_requests(tiny_model().config) == []
        assert self.request(["cat"]).forgotten_ids == [2]

    def test_earlier_classes_stay_forgotten(self):
        request = self.request(["cat"], entry("ant"), entry("elk"))
        assert (request.class_ids, request.forgotten_ids) == ([2], [0, 2, 4])
        assert forgotten_ids(request.history) == [0, 4]

    def test_a_class_that_is_gone_already_is_refused(self):
        with pytest.raises(UnlearningError, match="forgotten 'cat' already, by request 2 of 2026-01-01"):
            self.request(["cat", "dog"], entry("ant"), entry("cat"))

    def test_two_classes_must_stay_of_all_requests_together(self):
        with pytest.raises(UnlearningError, match="would leave 1 of 5"):
            self.request(["cat", "dog"], entry("ant", "bee"))

    def test_a_ledger_of_other_classes_is_refused(self):
        with pytest.raises(UnlearningError, match="class 2, 'cat', was forgotten, but that class is called 'cow'"):
            self.request(["ant"], entry("cat"), names=["ant", "bee", "cow", "dog", "elk"])

    @pytest.mark.parametrize("ledger", [["cat"], [{}], [{"classes": [{"id": 9, "label": "cat"}]}], "cat"])
    def test_a_damaged_ledger_is_refused(self, ledger):
        model_config = tiny_model().config
        model_config.unlearning = ledger
        with pytest.raises(UnlearningError, match=r"'unlearning' in the model's config\.json is no ledger"):
            earlier_requests(model_config)

    def test_images_are_for_methods_that_forget_images(self):
        request = self.request(None, entry("ant"), method="amun")
        assert (request.class_ids, request.forgotten_ids) == ([], [0])
        with pytest.raises(UnlearningError, match=r"method='amun' forgets images .* cannot forget \['cat'\]"):
            self.request(["cat"], method="amun")
        with pytest.raises(UnlearningError, match="or method='amun' for images"):
            self.request(None)


class TestCommitment:
    CLASSES = [{"id": 2, "label": "cat"}]

    def pictures(self, count=4):
        return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)

    def test_the_order_of_the_images_does_not_matter_and_everything_else_does(self):
        pictures, nonce = self.pictures(), draw_nonce()
        it = commitment(nonce, self.CLASSES, pictures)
        assert commitment(nonce, self.CLASSES, pictures.flip(0)) == it
        other = pictures.clone()
        other[0, 0, 0, 0] ^= 1
        changed = [(nonce, self.CLASSES, other), (nonce, [], pictures), (nonce, self.CLASSES, pictures[1:])]
        assert it not in [commitment(*one) for one in [*changed, (draw_nonce(), self.CLASSES, pictures)]]

    def test_the_nonce_does_not_come_from_a_seed(self):
        torch.manual_seed(0)
        first = draw_nonce()
        torch.manual_seed(0)
        assert draw_nonce() != first and len(first) == 64

    def test_a_saved_run_proves_its_images_and_no_others(self, tmp_path):
        forget = images([2] * 12)
        run = trainer(tmp_path, forget=forget, max_steps=10)
        run.train()
        run.save_model()
        folder = run.args.output_dir
        made = UnlearningReport.load(folder).request
        assert proves(folder, made, run.forget.images.flip(0))
        assert not proves(folder, made, run.forget.images[1:])
        nonce = json.loads((Path(folder) / "_request.json").read_text())[made["commitment"]]
        public = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "_request.json"]
        assert not any(nonce.encode() in path.read_bytes() for path in public)
        assert stat.S_IMODE((Path(folder) / "_request.json").stat().st_mode) == 0o600


def run_request(model, label, out, forget, **options):
    run = UnlearningTrainer(
        model, config(out, forget_classes=[label], max_steps=30, **options), forget, processing_class=tiny_processor()
    )
    run.train()
    run.save_model()
    return run


def test_a_second_request_keeps_the_first(tmp_path):
    first = run_request(tiny_model(), "cat", tmp_path / "a", images([2] * 20))
    second = run_request(first.args.output_dir, "ant", tmp_path / "b", images([0] * 20, seed=1))
    assert (second.plan.targets[:, [0, 2]] == 0).all()
    assert not {"ant", "cat"} & set(second.report.proxies["per_class"])
    assert second.plan.proxies.targets[:, [0, 2]].max() == 0
    before, after = (run.classifier.predict(first.forget.images).softmax(1)[:, 2].mean() for run in (first, second))
    assert after < 1.5 * before < 0.05
    report = UnlearningReport.load(second.args.output_dir)
    assert [known["label"] for known in report.forget_classes] == ["ant", "cat"]
    assert [e["classes"][0]["label"] for e in report.history] == ["cat"]
    ledger = json.loads((Path(second.args.output_dir) / "config.json").read_text())["unlearning"]
    assert ledger == [*report.history, report.request]
    assert (ledger[1]["base_model"], ledger[1]["images"]) == ("out", 20)


def test_the_original_of_a_second_request_is_the_model_as_it_came(tmp_path):
    first = run_request(tiny_model(), "cat", tmp_path / "a", images([2] * 20))
    came = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    second = run_request(first.args.output_dir, "ant", tmp_path / "b", images([0] * 20, seed=1))
    assert not torch.equal(second.model.classifier.bias, came["classifier.bias"]), "a bias must have moved"
    original = original_classifier(second).model.state_dict()
    assert all(torch.equal(original[name], tensor) for name, tensor in came.items())


def test_the_folder_of_the_first_request_is_not_overwritten_by_the_second(tmp_path):
    first = run_request(tiny_model(), "cat", tmp_path, images([2] * 20))
    with pytest.raises(UnlearningError, match="holds the result of another request"):
        run_request(first.args.output_dir, "ant", tmp_path, images([0] * 20))


def test_an_unlearned_model_refuses_the_same_class_again(tmp_path):
    first = run_request(tiny_model(), "cat", tmp_path / "a", images([2] * 20))
    with pytest.raises(UnlearningError, match="forgotten 'cat' already, by request 1"):
        run_request(first.args.output_dir, "cat", tmp_path / "b", images([2] * 20))


def test_training_twice_makes_one_entry(tmp_path):
    run = trainer(tmp_path, max_steps=10)
    run.train()
    run.train()
    assert len(run.model.config.unlearning) == 1


class TestThreeInARow:
    """On real digits: one request after the other, each on the folder that the last one left."""

    LABELS = ["3", "5", "8"]

    @pytest.fixture(scope="class")
    def runs(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("ledger")
        train, test = digits_dataset()
        model, image_processor = digits_model(train.features["label"].names, 0)
        quiet = {"disable_tqdm": True, "use_cpu": True, "report_to": "none"}
        options = UnlearningConfig(output_dir=str(folder / "training"), **quiet)
        start = str(folder / "original")
        train_classifier(model, image_processor, train, [], options).save_pretrained(start)
        image_processor.save_pretrained(start)

        def unlearn(source, labels):
            rows = rows_of_classes(train, "label", range(10), list(map(int, labels)))
            out = str(folder / "-".join(["without", *labels, Path(source).name]))
            run = UnlearningTrainer(
                source, UnlearningConfig(output_dir=out, forget_classes=labels, **quiet), train.select(rows), test
            )
            run.train()
            metrics = run.evaluate()
            run.save_model()
            return run, metrics

        found, source = [], start
        for label in self.LABELS:
            run, metrics = unlearn(source, [label])
            found.append(metrics)
            source = run.args.output_dir
        return run, found, unlearn(start, self.LABELS)[1]

    def test_they_cost_no_more_than_all_at_once(self, runs):
        _, found, together = runs
        assert found[-1]["eval_acc_rt"] >= together["eval_acc_rt"] - 0.02
        assert together["eval_acc_ut"] == 0

    def test_what_was_forgotten_first_stays_forgotten(self, runs):
        run, found, _ = runs
        assert found[0]["eval_acc_3"] == found[-1]["eval_acc_3"] == 0
        assert found[-1]["eval_acc_ut"] == 0
        of_three = torch.stack([item["pixels"] for item in run.eval_dataset if item["labels"] == 3])
        assert run.classifier.predict(of_three).softmax(1)[:, 3].max() < 0.05

    def test_no_picture_of_a_forgotten_class_is_answered_with_another_forgotten_class(self, runs):
        """acc_ut does not see it: the answer is wrong, but of a class that is gone."""
        run, _, _ = runs
        items = [item["pixels"] for item in run.eval_dataset if int(item["labels"]) in run.forget_ids]
        answers = run.classifier.predict(torch.stack(items)).argmax(1)
        assert torch.isin(answers, torch.tensor(run.forget_ids)).float().mean() < 0.02

    def test_the_whole_history_stands_in_config_and_report(self, runs):
        run, _, _ = runs
        ledger = run.model.config.unlearning
        assert [e["classes"][0]["label"] for e in ledger] == self.LABELS
        assert ledger == [*run.report.history, run.report.request]
