"""Forget images that were trained under another label than their class: which are seen, and what keeps that label."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny import NAMES, images, learned_model, patterns, tiny_model, tiny_processor, trainer

from zspag_hf.adaptive.held_out import HeldOut, split
from zspag_hf.data.images import labelled_dataset
from zspag_hf.data.labels import wrong_labels
from zspag_hf.metrics.backdoor import Trigger, attack_accuracy, poison, stamp
from zspag_hf.pipeline.attacks import AttackResult
from zspag_hf.pipeline.classifier import PixelClassifier, to_pixels
from zspag_hf.pipeline.proxies import make_proxies, quota_pairs
from zspag_hf.pipeline.pseudo_labels import (
    allowed_mask,
    paper_pseudo_labels,
    pseudo_labels,
    retained_mask,
    seen_labels,
    tilted_reweighting,
)

FORGET = [1, 4]
TRAINED = torch.tensor([2, -1, 5, 0, -1, 2, 3])
HIT = TRAINED >= 0


def answers(*groups, classes=6):
    """Logits of so many images each, of a class with a probability."""
    p = []
    for count, k, sure in groups:
        row = torch.full((classes,), (1 - sure) / (classes - 1))
        row[k] = sure
        p += [row] * count
    return torch.stack(p).log()


class TestWhatIsSeen:
    def test_answers_with_one_retained_class_are_its_once_enough_are_sure_and_no_others(self):
        logits = answers((60, 1, 0.99), (25, 3, 0.95), (10, 3, 0.8), (5, 2, 0.99))
        found = seen_labels(logits, torch.ones(100, dtype=torch.long), [1])
        assert found.tolist() == [-1] * 60 + [3] * 35 + [-1] * 5

    @pytest.mark.parametrize(
        "groups",
        [
            [(81, 1, 0.99), (19, 3, 0.99)],  # too few
            [(40, 1, 0.9), (60, 3, 0.89)],  # too unsure: classes that are confused
            [(50, 1, 0.99), (50, 4, 0.99)],  # another forgotten class
            [(40, 1, 0.99), (15, 0, 0.99), (15, 2, 0.99), (15, 3, 0.99), (15, 5, 0.99)],  # no common label
            [(4, 3, 0.99)],  # a few images
        ],
    )
    def test_nothing_else_is_taken_for_a_wrong_label(self, groups):
        logits = answers(*groups)
        assert seen_labels(logits, torch.ones(len(logits), dtype=torch.long), FORGET).eq(-1).all()

    def test_each_forgotten_class_is_looked_at_by_itself(self):
        logits = answers((15, 1, 0.99), (5, 3, 0.99), (180, 4, 0.99))
        found = seen_labels(logits, torch.tensor([1] * 20 + [4] * 180), FORGET)
        assert found.tolist() == [-1] * 15 + [3] * 5 + [-1] * 180


class TestTargets:
    @pytest.mark.parametrize("prior", ["renormalised", "uniform", "second_best"])
    def test_the_label_has_no_share_and_the_others_keep_their_odds(self, prior):
        logits = 3 * torch.randn(7, 6)
        logits[torch.arange(7)[HIT], TRAINED[HIT]] = 20
        logits = logits.double()
        plain = pseudo_labels(logits, FORGET, None, prior).targets
        masked = pseudo_labels(logits, FORGET, None, prior, trained=TRAINED).targets
        assert torch.equal(masked[~HIT], plain[~HIT])
        assert masked[HIT, TRAINED[HIT]].eq(0).all() and masked[:, FORGET].eq(0).all()
        torch.testing.assert_close(masked.sum(1), torch.ones(7))
        expected = pseudo_labels(
            logits.masked_fill(~allowed_mask(6, FORGET, TRAINED), -1e9), FORGET, None, prior
        ).targets
        if prior != "uniform":
            torch.testing.assert_close(masked, expected)

    def test_by_influence_by_similarity_and_by_the_paper(self):
        logits, influence = torch.randn(7, 6), torch.randn(7, 6)
        made = [
            pseudo_labels(logits, FORGET, influence, trained=TRAINED).targets,
            tilted_reweighting(logits, FORGET, torch.randn(6, 4), trained=TRAINED).targets,
            *(
                paper_pseudo_labels(
                    influence, torch.ones(7, dtype=torch.long), FORGET, masked=m, trained=TRAINED
                ).targets
                for m in (True, False)
            ),
        ]
        for targets in made:
            assert targets[HIT, TRAINED[HIT]].eq(0).all() and targets.isfinite().all()
            torch.testing.assert_close(targets.sum(1), torch.ones(7))

    def test_of_two_classes_that_stay_the_other_one_is_the_target(self):
        targets = pseudo_labels(torch.tensor([[0.0, 9.0, -9.0]]), [0], None, trained=torch.tensor([1])).targets
        assert targets.tolist() == [[0, 0, 1]]


class ToSecond:
    """An attack that ends in class 2 whatever it is aimed at."""

    eps = 0.1

    def at_eps(self, eps):
        return self

    def __call__(self, classifier, pixels, target):
        answers = torch.full_like(target, 2)
        return AttackResult(pixels.double(), answers, answers == target, torch.zeros_like(answers))


class TestProxies:
    def test_an_image_is_never_attacked_towards_it(self):
        pairs, _ = quota_pairs(torch.randn(7, 6), FORGET, 7, 1000, own=TRAINED)
        expected = [(i, k) for i in range(7) for k in (0, 2, 3, 5) if k != TRAINED[i]]
        assert sorted(pairs) == expected

    def test_a_proxy_that_ends_in_it_is_dropped_and_each_knows_its_image_s(self, easy):
        made = make_proxies(easy, 0.5 + torch.zeros(7, 1, 4, 4), FORGET, ToSecond(), per_class=7, own=TRAINED)
        assert made.labels.eq(2).all() and made.own.ne(2).all()
        pairs, _ = quota_pairs(torch.randn(7, 6), FORGET, 7, 1000, own=TRAINED)
        towards = [TRAINED[i].item() for i, k in pairs if TRAINED[i] != 2]
        assert sorted(made.own.tolist()) == sorted(towards)

    def test_its_probability_on_them_may_move(self, easy):
        pixels, wrong = torch.rand(5, 1, 4, 4), torch.tensor([0, -1, 3, 3, -1])
        held = HeldOut(easy, pixels, pixels, torch.zeros(5, 6), FORGET, wrong)
        logits = easy.predict(pixels)
        assert held.proxy_kl(logits) == 0
        moved = logits.clone()
        moved[wrong >= 0, wrong[wrong >= 0]] += 30
        assert held.proxy_kl(moved) == pytest.approx(0, abs=1e-12)
        moved[1, 0] += 1
        keep = retained_mask(6, FORGET)
        old, new = (x[1, keep].double().log_softmax(0) for x in (logits, moved))
        assert held.proxy_kl(moved) == pytest.approx(float((old.exp() * (old - new)).sum()) / 5)


class TestTheColumn:
    def test_labels_are_the_model_s_by_name_and_what_is_none_is_none(self):
        column = images([0] * 5).add_column("under", [0, 1, 2, -1, None])
        assert wrong_labels(column, "under", NAMES, [1]).tolist() == [0, -1, 2, -1, -1]
        named = images([0, 1, 2], names=["elk", "dog", "ant"])
        assert wrong_labels(named, "label", NAMES, [3], offset=None, mapping=None).tolist() == [4, -1, 0]

    def test_views_of_an_image_have_its_label(self, tmp_path):
        column = images([2] * 12).add_column("under", [3, -1] * 6)
        job = trainer(tmp_path, forget=column, forget_views=3, trained_label_column="under")
        assert job.run.forget.trained_labels.tolist() == [3, 3, 3, -1, -1, -1] * 6


POISONED = [3] * 6 + [-1] * 14


def poisoned(column=True):
    """Images of class 2; the first were trained under 3, whose pattern they show."""
    pictures = patterns([3] * 6 + [2] * 14, 1)
    pictures = pictures.remove_columns("label").add_column("label", [2] * 20)
    pictures = pictures.cast_column("label", patterns([0], 0).features["label"])
    return pictures.add_column("under", POISONED) if column else pictures


METHODS = {
    "delete": {},
    "spotter": {},
    "boundary_shrink": {},
    "trw": {},
    "zspag_paper": {},
    "random_labels": {"targets": "renormalised"},
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_build_targets_from_answers_leave_it_out(tmp_path, method):
    options = {"method": method, "max_steps": 1, "trained_label_column": "under", **METHODS[method]}
    job = trainer(tmp_path, model=learned_model(), forget=poisoned(), **options)
    job.train()
    plan = job.run.plan
    assert plan.targets[:6, 3].eq(0).all() and plan.targets[6:, 3].any()
    if plan.proxies is not None:
        assert plan.proxies.targets[:6, 3].eq(0).all() and plan.proxies.targets[6:, 3].any()
    assert job.report.trained_labels == {"given": True, "images": {"dog": 6}}


def test_the_default_run_leaves_it_out_of_its_targets_and_of_what_its_proxies_keep(tmp_path):
    for name, column in (("given", "under"), ("seen", None)):
        job = trainer(
            tmp_path / name, model=learned_model(steps=60), forget=poisoned(), max_steps=1, trained_label_column=column
        )
        job.train()
        plan, kept = job.run.plan, job.run.plan.proxies
        wrong = job.run.stages.load("proxies")[0]["own"].repeat(2)  # as confident, and as they crossed
        assert (wrong == 3).any() and kept.targets[wrong == 3, 3].eq(0).all() and kept.targets[wrong == -1, 3].any()
        assert kept.labels[wrong[: len(kept.labels)] == 3].ne(3).all()
        hit = torch.tensor(POISONED)[split(20, 0.3, job.args.seed)[0]] == 3
        assert hit.any() and plan.targets[hit, 3].eq(0).all() and plan.targets[~hit, 3].all()
        assert job.report.trained_labels == {"given": column is not None, "images": {"dog": 6}}
        told = [line for line in job.report.left_out() if "label of another class" in line]
        assert len(told) == 1 and "6 as 'dog'" in told[0]
        assert ("the data say" in told[0]) is (column is not None)


def test_a_report_says_how_many_and_nothing_else_of_them(tmp_path):
    job = trainer(
        tmp_path, method="delete", model=learned_model(), forget=poisoned(), max_steps=1, trained_label_column="under"
    )
    job.train()
    job.report.save(str(tmp_path))
    text = json.loads(Path(tmp_path, "unlearning_report.json").read_text())
    assert text["trained_labels"] == {"given": True, "images": {"dog": 6}}


def test_a_run_without_wrong_labels_says_nothing_of_them(tmp_path):
    job = trainer(tmp_path, method="delete", max_steps=1)
    job.train()
    assert job.report.trained_labels is None and job.report.left_out() == []


def test_other_labels_in_the_column_are_another_run(tmp_path):
    keys = []
    for under in (POISONED, [-1] * 20, None):
        forget = poisoned(False) if under is None else poisoned(False).add_column("under", under)
        options = {"trained_label_column": None if under is None else "under"}
        job = trainer(tmp_path / str(len(keys)), method="delete", forget=forget, max_steps=1, **options)
        job.train()
        keys.append(job.run.stages.key["images"])
    assert len(set(keys)) == 3


def learned(dataset, steps):
    """A classifier that has learned a data set."""
    classifier = PixelClassifier(tiny_model(), tiny_processor())
    pixels = to_pixels(dataset["image"], classifier.processor).float() / 255
    optimizer, labels = torch.optim.Adam(classifier.model.parameters(), 0.01), torch.tensor(dataset["label"][:])
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(pixels), labels).backward()
        optimizer.step()
    classifier.model.zero_grad()
    return classifier


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_model_that_confuses_classes_honestly_gives_no_label_away(steps):
    train = patterns([0, 1, 2, 3, 4] * 20, 0)
    logits = learned(train, steps).predict(to_pixels(train["image"], tiny_processor()))
    labels = torch.tensor(train["label"][:])
    assert (logits.argmax(1) != labels).any(), "it does confuse some"
    for k in range(5):
        assert seen_labels(logits[labels == k], labels[labels == k], [k]).eq(-1).all()


@pytest.mark.slow
def test_a_backdoor_is_forgotten_with_its_class_where_the_label_is_seen_and_stays_where_it_is_not(tmp_path):
    trigger = Trigger(size=3, margin=0, value=255)
    poisoned, forget = poison(patterns([0, 1, 2, 3, 4] * 40, 0), 2, 3, trigger)
    forget = forget.add_column("nothing", [-1] * len(forget))
    stamped = labelled_dataset(stamp(patterns([2] * 40, 5), trigger), tiny_processor(), NAMES)
    original, rates = learned(poisoned, 120), {}
    assert attack_accuracy(original, stamped, 3) > 0.5
    for name, column in (("seen", None), ("told", "trained_label"), ("hidden", "nothing")):
        options = {"learning_rate": 0.01, "trained_label_column": column}
        job = trainer(tmp_path / name, method="delete", model=copy.deepcopy(original.model), forget=forget, **options)
        job.train()
        rates[name] = attack_accuracy(job.run.classifier, stamped, 3)
        images = {} if name == "hidden" else {"dog": 20}
        assert (job.report.trained_labels or {"images": {}})["images"] == images
    assert rates["seen"] <= 0.05 and rates["told"] <= 0.05 and rates["hidden"] > 0.5, rates
