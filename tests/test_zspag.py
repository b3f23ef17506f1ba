"""Forgetting in the features: what each part of the default promises, and a short run of the whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import two_layer_classifier
from sweep import sweep
from tiny import images, trainer

from zspag_hf.adaptive.confident import EPS, confident_proxies
from zspag_hf.adaptive.head import predict_with_inputs
from zspag_hf.adaptive.scatter import drawn_scatter, joint_discrepancy, kernel, scatter, scatter_goal
from zspag_hf.adaptive.views import moved, view_targets
from zspag_hf.errors import UnlearningError
from zspag_hf.methods import ZSPAG
from zspag_hf.pipeline.attacks import PGDLinf
from zspag_hf.pipeline.proxies import make_proxies


@pytest.fixture(params=sweep("vit", "resnet"))
def case(request):
    return request.param


def random_units(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


class TestConfident:
    def test_each_proxy_becomes_as_confident_as_its_goal_and_stays_in_the_ball(self):
        classifier = two_layer_classifier(width=6, num_labels=4)
        forget = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        proxies = make_proxies(classifier, forget, [1], PGDLinf(0.5), per_class=6)
        p = classifier.predict(proxies.pixels).softmax(1).gather(1, proxies.labels[:, None]).squeeze(1)
        goal = float(p.median()) + 1e-3  # no proxy's own
        made = confident_proxies(classifier, proxies.pixels, proxies.labels, torch.tensor([goal]), seed=0)
        after = classifier.predict(made).softmax(1).gather(1, proxies.labels[:, None]).squeeze(1)
        done = p >= goal
        assert torch.equal(made[done], proxies.pixels[done]), "those that are stay as they are"
        assert (after[~done] > p[~done]).all() and (after >= goal).sum() > done.sum()
        assert (made - proxies.pixels).abs().max() <= EPS + 1e-6 and made.min() >= 0 and made.max() <= 1


class TestViews:
    def test_targets_are_distributions_without_the_forgotten_classes(self, case):
        classifier, pixels = case.classifier(torch.float32), case.pixels(6, torch.float32)
        targets, strength = view_targets(classifier, pixels, [1, 2], seed=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        assert (targets[:, [1, 2]] == 0).all() and (targets >= 0).all() and 0 <= strength <= 1

    def test_views_of_no_strength_are_the_images_and_change_no_target(self):
        pixels = torch.rand(3, 1, 4, 4)
        torch.testing.assert_close(moved(pixels, 0.0, torch.Generator()), pixels)
        assert (moved(pixels, 1.0, torch.Generator().manual_seed(0)) - pixels).abs().max() > 0.01

    def test_a_model_that_knows_its_images_from_one_place_alone_gets_the_masked_targets(self, monkeypatch):
        classifier = two_layer_classifier(width=6, num_labels=4)
        pixels = torch.rand(5, 1, 2, 2)
        logits = classifier.predict(pixels)
        lost = logits.clone()
        lost[:, 1] = -50.0

        def predict(given, *_):
            same = torch.isclose(given.float(), pixels).flatten(1).all(1)
            return torch.where(same[:, None], logits, lost)

        monkeypatch.setattr(classifier, "predict_shared", predict)
        targets, strength = view_targets(classifier, pixels, [1], seed=0)
        masked = logits.double().index_fill(1, torch.tensor([1]), -torch.inf).softmax(1)
        assert strength == 0
        torch.testing.assert_close(targets.double(), masked, rtol=1e-5, atol=1e-7)


class TestScatter:
    def test_the_discrepancy_is_that_of_the_definition(self):
        x, y = random_units(5, 7, 0), random_units(4, 7, 1)
        p, q = (torch.rand(n, 3, dtype=torch.float64).softmax(1) for n in (5, 4))

        def pair(a, pa, b, pb):
            return float(kernel(a[None], b[None])[0, 0] * (pa @ pb))

        here = np.mean([pair(x[i], p[i], x[j], p[j]) for i in range(5) for j in range(5) if i != j])
        there = np.mean([pair(y[i], q[i], y[j], q[j]) for i in range(4) for j in range(4) if i != j])
        across = np.mean([pair(x[i], p[i], y[j], q[j]) for i in range(5) for j in range(4)])
        expected = (here + there - 2 * across) / float((p @ p.T).mean())
        assert float(joint_discrepancy(x, p, y, q)) == pytest.approx(expected, abs=1e-12)

    def test_it_is_small_for_one_distribution_and_large_for_two(self):
        same = torch.full((200, 2), 0.5, dtype=torch.float64)
        near = joint_discrepancy(random_units(200, 4, 0), same, random_units(200, 4, 1), same)
        bunched = F.normalize(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) + 0.1 * random_units(200, 4, 2), dim=1)
        assert abs(float(near)) < 0.05 < 0.5 < float(joint_discrepancy(bunched, same, random_units(200, 4, 1), same))

    def test_classes_are_compared_with_their_own(self):
        """Two clusters, each of a class: the same images with the classes swapped are another joint distribution."""
        x = torch.eye(2, dtype=torch.float64).repeat_interleave(20, 0)
        swapped = joint_discrepancy(x, x, x, x.flip(1))
        assert float(joint_discrepancy(x, x, x, x)) < 0.01 < 1 < float(swapped)

    def test_scatter_is_the_mean_cosine_of_pairs(self):
        x = random_units(6, 5, 0)
        labels = torch.tensor([0, 0, 0, 1, 1, 2])
        pairs = [(0, 1), (0, 2), (1, 2)]
        expected = (np.mean([float(x[i] @ x[j]) for i, j in pairs]) + float(x[3] @ x[4])) / 2
        assert float(scatter(x, labels)) == pytest.approx(expected, abs=1e-12)
        assert torch.isnan(scatter(x[:2], torch.tensor([0, 1]))), "nobody shares a class"

    def test_drawn_by_equal_weights_it_is_the_same(self):
        x = random_units(6, 5, 0)
        weights = torch.full((6,), 1 / 6, dtype=torch.float64)
        assert drawn_scatter(x, weights) == pytest.approx(float(scatter(x, torch.zeros(6))), abs=1e-12)

    def test_the_goal_is_halfway_from_the_original_to_proxies_of_the_classes_in_the_targets(self):
        forget = torch.tensor([[1.0, 0.0], [2.0, 0.0]])  # one direction
        proxies = torch.tensor([[0.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 0.0], [1.0, 1.0]])
        proxy_labels = torch.tensor([1, 1, 2, 2, 3])
        targets = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0]])
        drawn = 1 / 3  # two of four, the first of either class: of twelve ordered pairs four have cosine 1
        goal = scatter_goal(forget, torch.tensor([0, 0]), proxies, proxy_labels, targets)
        assert goal == pytest.approx((1 + drawn) / 2, abs=1e-6)


class TestRun:
    def run(self, folder, **options):
        kept = {"proxies_per_class": 4, "attack_eps": 0.5}
        run = trainer(folder, forget=images([2] * 12), max_steps=20, **kept, **options)
        run.train()
        return run

    def test_a_whole_run_reports_its_curve_and_its_choice(self, tmp_path):
        run = self.run(tmp_path)
        report = run.report
        assert report.choice["whole_proxy_kl"] <= report.choice["proxy_budget"]
        assert [entry["step"] for entry in report.curve] == [0, 10, 20, 20]
        assert [entry["phase"] for entry in report.curve] == ["whole"] * 3 + ["head"]
        assert report.curve[-1]["forget_probability"] < report.curve[0]["forget_probability"]
        assert len(report.layers) == len(run.run.layers) and "NOT FORGOTTEN" not in str(report)

    def test_it_sets_its_schedule_itself(self, tmp_path):
        with pytest.raises(UnlearningError, match="sets its steps itself"):
            trainer(tmp_path, forget=images([2] * 12), lr_scheduler_type="linear")

    def test_features_scatter_and_without_the_term_they_do_not(self, tmp_path):
        """On the features of the images that it trained on, the same run with and without."""
        cosines = []
        for weight in (0.0, 10.0):
            run = self.run(tmp_path / str(weight), depth_weight=weight, proxy_weight=0.0)
            head = run.run.layers[run.run.head]
            _, features = predict_with_inputs(run.run.classifier, head, run.run.made.pixels)
            cosines.append(float(scatter(F.normalize(features, dim=1), torch.zeros(len(features)))))
        assert cosines[1] < cosines[0]


def test_the_method_is_its_own_default():
    assert ZSPAG() == ZSPAG(**ZSPAG().to_dict())
