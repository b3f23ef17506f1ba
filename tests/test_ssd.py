"""SSD: the factor by hand, importances where gradients are known, and what the proxies stand for."""

import pytest
import torch
from cases import linear_classifier
from tiny import images, learned_model, patterns, tiny_model, trainer

from zspag_hf.methods import ssd
from zspag_hf.methods.ssd import IMPORTANCE_BATCH, batches, dampen, importance
from zspag_hf.trainer.stage_cache import StageCache

SSD = {"method": "ssd"}


class TestDampen:
    def test_by_hand(self):
        """alpha 10, lambda 1: I_f / I_D = 9.9 and 10 stay, 20 becomes 1/20, I_D = 0 becomes 0."""
        theta = torch.tensor([2.0, 3.0, 4.0, 5.0, -6.0])
        data = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0])
        forget = torch.tensor([9.9, 10.0, 20.0, 1.0, 80.0])
        chosen = dampen({"w": theta}, {"w": data}, {"w": forget}, 10.0, 1.0, 0.0)
        assert chosen == 3 and torch.allclose(theta, torch.tensor([2.0, 3.0, 0.2, 0.0, -0.15]), rtol=1e-6, atol=0)

    def test_the_strength_is_told_by_all_data_and_the_choice_by_the_others(self):
        """A tenth of all data: I_D = .9 I_r + .1 I_f, so a tenth stays at least; by I_D none would be chosen."""
        theta, data, forget = torch.ones(3), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([9.0, 30.0, 5.0])
        assert dampen({"w": theta}, {"w": data}, {"w": forget}, 10.0, 1.0, 0.1) == 2
        assert theta.tolist() == pytest.approx([1.0, (0.9 + 3.0) / 30, 0.1])

    def test_no_weight_grows(self):
        """lambda 5, alpha 2: the factor 5 / 4 is cut at 1."""
        theta = torch.tensor([2.0, 2.0])
        dampen({"w": theta}, {"w": torch.ones(2)}, {"w": torch.tensor([4.0, 10.0])}, 2.0, 5.0, 0.0)
        assert theta.tolist() == [2.0, 1.0]

    def test_entries_below_alpha_stay_bit_by_bit(self):
        theta, data = torch.randn(40, 30), torch.rand(40, 30)
        forget = data * 20 * torch.rand(40, 30)
        before, below = theta.clone(), ~(forget > 10 * data)
        dampen({"w": theta}, {"w": data}, {"w": forget}, 10.0, 1.0, 0.0)
        assert below.any() and torch.equal(theta[below], before[below])
        torch.testing.assert_close(theta[~below], (before * data / forget)[~below])

    def test_what_matters_to_neither_stays(self):
        theta = torch.ones(3)
        assert dampen({"w": theta}, {"w": torch.zeros(3)}, {"w": torch.zeros(3)}, 10.0, 1.0, 0.0) == 0
        assert torch.equal(theta, torch.ones(3))


@pytest.mark.parametrize("by_class", [True, False])
def test_importance_is_the_mean_over_batches_of_squared_mean_gradients(by_class):
    classifier = linear_classifier(num_labels=4, size=3)
    pixels, labels = torch.rand(300, 1, 3, 3, dtype=torch.float64), torch.randint(4, (300,))
    rows = batches(labels, by_class, seed=0)
    error = classifier.predict(pixels).double().softmax(1) - torch.eye(4, dtype=torch.float64)[labels]
    weight = sum((error[r].T @ pixels.flatten(1)[r] / len(r)).square() for r in rows) / len(rows)
    bias = sum(error[r].mean(0).square() for r in rows) / len(rows)
    found = importance(classifier, pixels, labels, rows)
    torch.testing.assert_close(found["layers.1.weight"], weight, rtol=1e-5, atol=1e-9)  # predict rounds to float32
    torch.testing.assert_close(found["layers.1.bias"], bias, rtol=1e-5, atol=1e-9)


class TestBatches:
    LABELS = torch.tensor([3, 0] * 70 + [1] * 5)

    def test_every_image_is_in_one_whatever_the_order(self):
        for by_class in (True, False):
            found = batches(self.LABELS, by_class, seed=0)
            assert torch.cat(found).sort().values.equal(torch.arange(145))
            assert max(len(rows) for rows in found) == IMPORTANCE_BATCH

    def test_of_one_class_each(self):
        found = batches(self.LABELS, True, seed=0)
        assert [(len(rows), self.LABELS[rows].unique().tolist()) for rows in found] == [
            (64, [0]), (6, [0]), (5, [1]), (64, [3]), (6, [3])
        ]  # fmt: skip

    def test_of_a_random_order_that_depends_on_the_seed(self):
        first, again, other = (torch.cat(batches(self.LABELS, False, seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert all(len(self.LABELS[rows].unique()) > 1 for rows in batches(self.LABELS, False, 0))


class TestRun:
    def sure(self):
        model = tiny_model()
        model.classifier.weight.data *= 4
        return model

    def trained(self, folder, **options):
        options = {"model": self.sure(), "forget": images([1] * 64, seed=1), "forget_classes": ["bee"]} | options
        job = trainer(folder, **SSD, **options)
        before = {name: value.clone() for name, value in job.model.state_dict().items()}
        job.train()
        return job, before, job.model.state_dict()

    def test_no_weight_grows_or_changes_its_sign_and_most_stay(self, tmp_path):
        job, before, after = self.trained(tmp_path, with_retain=True, retain=images([0, 2, 3, 4] * 40, seed=2))
        parameters = [name for name, _ in job.model.named_parameters()]
        old, new = (torch.cat([state[name].flatten() for name in parameters]) for state in (before, after))
        assert (new.abs() <= old.abs()).all() and (new * old >= 0).all()
        assert 0 < (new != old).sum() < len(old) / 2
        assert job.state.global_step == 0

    def test_buffers_stay(self, tmp_path):
        model = tiny_model("resnet")
        job, before, after = self.trained(tmp_path, model=model)
        buffers = [name for name, _ in job.model.named_buffers()]
        assert buffers and all(torch.equal(before[name], after[name]) for name in buffers)

    def test_without_retained_data_proxies_stand_for_them(self, tmp_path):
        job, _, _ = self.trained(tmp_path)
        assert job.run.retained is None
        per_class = job.report.proxies["per_class"]
        assert "bee" not in per_class and sum(per_class.values()) == job.report.proxies["count"] > 0

    def test_images_whose_classes_stay_come_last_among_proxies_of_their_own(self, tmp_path):
        """Of eight images four may stand for a class: none for its own, which it would do unchanged."""
        job = trainer(tmp_path, **SSD, forget=images([0, 1, 2, 3] * 2), forget_classes=None, model=self.sure())
        job.train()
        assert job.report.proxies["count"] > 8
        pixels, labels = self.proxies(job)
        own = job.run.forget.pixels.float() / 255
        nearest = (pixels[:, None] - own).flatten(2).norm(dim=2).argmin(1)
        assert (labels != job.run.forget.labels[nearest]).all()

    def proxies(self, job):
        job.run.stages = StageCache(job.args.output_dir, {})
        return job.method.data(job.run, job.run.plan)

    @pytest.mark.parametrize(("options", "share"), [({}, 1 / 5), ({"with_retain": True}, 64 / 224)])
    def test_how_large_a_share_the_forget_images_are(self, tmp_path, monkeypatch, options, share):
        seen, real = [], ssd.dampen
        monkeypatch.setattr(ssd, "dampen", lambda *given: seen.append(given[-1]) or real(*given))
        self.trained(tmp_path, **options, **({"retain": images([0, 2, 3, 4] * 40, seed=2)} if options else {}))
        assert seen == [share]

    def test_with_retained_data_these_are_compared_with(self, tmp_path):
        job = trainer(tmp_path, **SSD, with_retain=True, retain=images([0, 1, 3, 4] * 5, seed=2))
        pixels, labels = job.method.data(job.run, None)
        assert torch.equal(pixels, job.run.retained.pixels) and torch.equal(labels, job.run.retained.labels)

    @pytest.mark.parametrize(("classes", "per_batch"), [(["bee"], 1), (None, 4)])
    def test_batches_hold_one_class_where_classes_are_forgotten_and_a_mixture_else(
        self, tmp_path, monkeypatch, classes, per_batch
    ):
        seen, real = [], ssd.importance

        def watched(classifier, pixels, labels, rows, disable_progress):
            seen.append({len(labels[one].unique()) for one in rows})
            return real(classifier, pixels, labels, rows, disable_progress)

        monkeypatch.setattr(ssd, "importance", watched)
        retain = images([0, 2, 3, 4] * 32, seed=2)
        self.trained(tmp_path, with_retain=True, retain=retain, forget_classes=classes)
        assert seen == [{per_batch}, {1}]


@pytest.mark.slow
def test_a_model_that_has_learned_forgets_the_class_and_keeps_the_others(tmp_path):
    sets = {"forget": patterns([2] * 40, 1), "retain": patterns([0, 1, 3, 4] * 40, 2)}
    sets |= {"test": patterns([0, 1, 2, 3, 4] * 20, 5)}
    job = trainer(tmp_path, **SSD, **sets, model=learned_model("resnet", steps=15), with_retain=True)
    before = job.evaluate()
    job.train()
    after = job.evaluate()
    assert min(before["eval_acc_rt"], before["eval_acc_ut"]) > 0.9
    assert after["eval_acc_ut"] < 0.3 and after["eval_acc_rt"] > 0.85
