import math

import pytest
import torch
import torch.nn.functional as F
from tiny import trainer

from zspag_hf import UnlearningError
from zspag_hf.pipeline import pseudo_labels as pseudo_labels_module
from zspag_hf.pipeline.pseudo_labels import (
    SIGNS,
    class_similarity,
    paper_pseudo_labels,
    pseudo_labels,
    retained_mask,
    tilted_reweighting,
)

PRIORS = ["renormalised", "uniform", "second_best"]
FORGET = [1, 4]
KEEP = [0, 2, 3, 5]


@pytest.fixture
def logits():
    return 3 * torch.randn(7, 6)


@pytest.fixture
def influence():
    return torch.randn(7, 6)


def on_the_simplex(targets, forget=FORGET):
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert (targets >= 0).all() and (targets[:, forget] == 0).all()


@pytest.mark.parametrize("tilted", [True, False])
def test_the_second_best_label_is_the_top_retained_class_whatever_the_tilt(tilted, logits, influence):
    targets = pseudo_labels(logits, FORGET, influence if tilted else None, prior="second_best").targets
    on_the_simplex(targets)
    best = torch.tensor(KEEP)[logits[:, KEEP].argmax(1)]
    assert targets.argmax(1).equal(best) and targets.max(1).values.eq(1).all()


@pytest.mark.parametrize("prior", [prior for prior in PRIORS if prior != "second_best"])
@pytest.mark.parametrize("sign", SIGNS)
class TestAnyPriorAndSign:
    @pytest.mark.parametrize("tilted", [True, False])
    def test_rows_are_distributions_over_retained_classes(self, prior, sign, tilted, logits, influence):
        result = pseudo_labels(logits, FORGET, influence if tilted else None, prior=prior, sign=sign)
        on_the_simplex(result.targets)
        assert result.targets.shape == (7, 6) and result.targets.dtype == torch.float32
        assert result.influence is (influence if tilted else None)

    def test_prior_times_exponential_of_the_influence(self, prior, sign, logits, influence):
        """log(target / prior) differs between labels by +-(influence difference) / (std tau)."""
        base = pseudo_labels(logits, FORGET, None, prior=prior).targets[:, KEEP]
        tilted = pseudo_labels(logits, FORGET, influence, prior=prior, temperature=2.0, sign=sign).targets[:, KEEP]
        ratio = (tilted / base).log()
        a = influence[:, KEEP] / influence[:, KEEP].std(correction=0) / 2.0
        expected = a if sign == "upweight" else -a
        torch.testing.assert_close(ratio.diff(dim=1), expected.diff(dim=1), rtol=1e-3, atol=1e-3)

    def test_preferred_labels_gain(self, prior, sign, logits, influence):
        base = pseudo_labels(logits, FORGET, None, prior=prior).targets
        tilted = pseudo_labels(logits, FORGET, influence, prior=prior, sign=sign).targets
        a = influence[:, KEEP]
        largest, smallest = (torch.tensor(KEEP)[index][:, None] for index in (a.argmax(1), a.argmin(1)))
        gains, loses = (largest, smallest) if sign == "upweight" else (smallest, largest)
        assert (tilted.gather(1, gains) > base.gather(1, gains)).all()
        assert (tilted.gather(1, loses) < base.gather(1, loses)).all()

    def test_a_large_temperature_is_the_prior_alone(self, prior, sign, logits, influence):
        base = pseudo_labels(logits, FORGET, None, prior=prior).targets
        far, near = (
            pseudo_labels(logits, FORGET, influence, prior=prior, sign=sign, temperature=t).targets for t in (1e9, 0.5)
        )
        torch.testing.assert_close(far, base)
        assert (near - base).abs().max() > 0.1

    def test_a_small_temperature_is_one_label(self, prior, sign, logits, influence):
        targets = pseudo_labels(logits, FORGET, influence, prior=prior, sign=sign, temperature=1e-4).targets
        a = influence[:, KEEP] if sign == "upweight" else -influence[:, KEEP]
        assert torch.equal(targets.argmax(1), torch.tensor(KEEP)[a.argmax(1)])
        assert targets.amax(1).min() > 0.999

    def test_unit_of_the_influence_does_not_matter(self, prior, sign, logits, influence):
        reference = pseudo_labels(logits, FORGET, influence, prior=prior, sign=sign).targets
        for scale in (1e-12, 1e6):
            scaled = pseudo_labels(logits, FORGET, scale * influence, prior=prior, sign=sign).targets
            torch.testing.assert_close(scaled, reference)

    def test_influence_of_forgotten_classes_does_not_matter(self, prior, sign, logits, influence):
        reference = pseudo_labels(logits, FORGET, influence, prior=prior, sign=sign).targets
        influence[:, FORGET] *= 1e6
        torch.testing.assert_close(pseudo_labels(logits, FORGET, influence, prior=prior, sign=sign).targets, reference)

    def test_no_influence_anywhere_is_the_prior(self, prior, sign, logits):
        targets = pseudo_labels(logits, FORGET, torch.zeros(7, 6), prior=prior, sign=sign).targets
        torch.testing.assert_close(targets, pseudo_labels(logits, FORGET, None, prior=prior).targets)

    def test_one_image_and_one_retained_class(self, prior, sign):
        targets = pseudo_labels(torch.randn(1, 2), [0], torch.randn(1, 2), prior=prior, sign=sign).targets
        assert torch.equal(targets, torch.tensor([[0.0, 1.0]]))


class TestPrior:
    def test_renormalised_is_the_softmax_without_the_forgotten_classes(self, logits):
        p = logits.double().softmax(1)
        p[:, FORGET] = 0
        expected = (p / p.sum(1, keepdim=True)).float()
        torch.testing.assert_close(pseudo_labels(logits, FORGET, None).targets, expected)

    def test_renormalised_of_one_class_is_p_over_one_minus_p(self, logits):
        p = logits.double().softmax(1)
        expected = (p / (1 - p[:, 2:3])).float()
        expected[:, 2] = 0
        torch.testing.assert_close(pseudo_labels(logits, [2], None).targets, expected)

    @pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
    def test_an_over_confident_model_is_no_division_by_zero(self, size):
        """1 - p_u is 0 here: the order among the retained classes is still in the logits."""
        logits = torch.tensor([[0.0, size, -1.0, -1.0, 0.0, -2.0]])
        targets = pseudo_labels(logits, [1], None).targets
        on_the_simplex(targets, [1])
        expected = torch.tensor([[0.0, -torch.inf, -1.0, -1.0, 0.0, -2.0]]).softmax(1)
        torch.testing.assert_close(targets, expected)

    def test_over_confident_in_a_retained_class(self):
        logits = 1e4 * torch.randn(5, 6)
        targets = pseudo_labels(logits, FORGET, torch.randn(5, 6)).targets
        on_the_simplex(targets)

    def test_uniform_ignores_the_logits(self, logits):
        targets = pseudo_labels(logits, FORGET, None, prior="uniform").targets
        torch.testing.assert_close(targets[:, KEEP], torch.full((7, 4), 0.25))


class TestPaper:
    @pytest.fixture
    def labels(self):
        return torch.tensor([1, 4, 1, 1, 4, 1, 4])

    @pytest.fixture
    def made(self, monkeypatch):
        """A function: the targets after so many steps, with a weight of the penalty."""

        def make(influence, labels, penalty=pseudo_labels_module.PENALTY, steps=60, **options):
            monkeypatch.setattr(pseudo_labels_module, "PENALTY", penalty)
            monkeypatch.setattr(pseudo_labels_module, "PAPER_STEPS", steps)
            return paper_pseudo_labels(influence, labels, FORGET, **options).targets

        return make

    @pytest.mark.parametrize("sign", SIGNS)
    def test_rows_are_distributions_over_retained_classes(self, influence, labels, sign, made):
        on_the_simplex(made(influence, labels, sign=sign))

    def test_under_the_mask_there_is_no_penalty(self, influence, labels, made):
        """One only lowered the entropy there: two draws of the start then had nothing in common."""
        assert torch.equal(made(influence, labels, 0.0), made(influence, labels, 1e3))
        first, second = (made(influence, labels, steps=100, seed=seed) for seed in (3, 4))
        assert (first.argmax(1) == second.argmax(1)).all()

    def test_same_seed_same_labels(self, influence, labels, made):
        first = made(influence, labels, seed=3)
        torch.manual_seed(99)
        assert torch.equal(made(influence, labels, seed=3), first)
        few = (made(influence, labels, steps=2, seed=s) for s in (3, 4))
        assert not torch.allclose(*few, atol=1e-2)

    def test_the_start_is_a_random_softmax(self, influence, labels, made):
        z = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
        z[:, FORGET] = -torch.inf
        torch.testing.assert_close(made(influence, labels, steps=0, seed=3), z.softmax(1))

    def test_the_printed_sign_descends_eq_10(self, influence, labels, made):
        """sum_k y_k a_ik goes down from its start, towards the smallest a."""
        change = [(made(influence, labels, steps=n, sign="eq10") * influence).sum(1) for n in (0, 20, 400)]
        assert (change[1] < change[0]).all() and (change[2] < change[1]).all()
        smallest = influence[:, KEEP].amin(1)
        assert (change[2] - smallest < 0.1 * (change[0] - smallest) + 0.02).all()

    def test_the_default_sign_climbs_it(self, influence, labels, made):
        change = [(made(influence, labels, steps=n) * influence).sum(1) for n in (0, 20)]
        assert (change[1] > change[0]).all()

    def test_without_the_mask_the_kl_keeps_off_the_true_label(self, influence, labels, made):
        """And off it alone: with no influence the other shares stay as they began."""
        shares = [
            made(0.1 * influence, labels, weight, 100, masked=False).gather(1, labels[:, None]).mean()
            for weight in (0.0, 0.1, 3.0)
        ]
        assert shares[0] > 0.05 and shares[0] > shares[1] > shares[2] and shares[2] < 0.05
        start, pushed = (made(0 * influence, labels, 1.0, n, masked=False) for n in (0, 100))
        others = torch.ones_like(start).scatter(1, labels[:, None], 0.0)
        torch.testing.assert_close(*(F.normalize(y * others, 1.0) for y in (start, pushed)), rtol=0.35, atol=0.02)
        assert pushed[:, FORGET].gt(0).any(), "other forgotten classes have their share"

    def test_without_the_mask_the_loss_is_eq_10_plus_the_kl(self, influence, labels, made):
        """One step of Adam from z is .1 times the sign of the gradient of a.y + log y[y_i]."""
        z = torch.randn(7, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
        a = influence / influence.std(correction=0)
        log_y = z.log_softmax(1)
        loss = (log_y.exp() * a).sum() - F.nll_loss(log_y, labels, reduction="sum")
        step = 0.1 * torch.autograd.grad(loss, z)[0].sign()
        found = made(influence, labels, 1.0, 1, seed=3, sign="eq10", masked=False)
        torch.testing.assert_close(found, (z.detach() - step).softmax(1), rtol=1e-3, atol=1e-4)

    def test_images_whose_class_stays_are_kept_off_it_under_the_mask_too(self, influence, made):
        labels = torch.tensor([0, 2, 3, 5, 0, 2, 3])
        shares = [made(0.1 * influence, labels, weight, 100).gather(1, labels[:, None]).mean() for weight in (0.0, 3.0)]
        assert shares[0] > 0.1 and shares[1] < 0.05

    def test_influence_is_left_alone_and_returned(self, influence, labels):
        """Also where no gradients are recorded."""
        kept = influence.clone()
        result = paper_pseudo_labels(influence, labels, FORGET)
        assert result.influence is influence and torch.equal(influence, kept)
        assert not result.targets.requires_grad
        with torch.no_grad():
            assert torch.equal(paper_pseudo_labels(influence, labels, FORGET).targets, result.targets)


class TestTiltedReweighting:
    """TRW: the renormalised softmax, tilted by what the head's rows say of the classes."""

    head = torch.tensor([[2.0, 1.0], [2.0, 4.0], [-1.0, 1.0]])  # centre (1, 2)

    def test_three_classes_by_hand(self):
        """Class 0 goes. Its row from the centre is (1, -1); the others are (1, 2) and (-2, -1): cosines -1/sqrt(10)
        both, so both are alike and nothing tilts; with the third moved, one is nearer."""
        assert class_similarity(self.head, [0]).tolist() == pytest.approx([0, 0.5, 0.5])
        head = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]])  # from the centre (1, 1): (2,-1), (-1,2), (-1,-1)
        cosines = [-4 / 5, -1 / 10**0.5]
        e = [math.exp(cosine) for cosine in cosines]
        s = [value / sum(e) for value in e]
        assert class_similarity(head, [0]).tolist() == pytest.approx([0, *s])
        logits = torch.tensor([[5.0, 1.0, 0.5]])
        weights = [math.exp(1.0 + 10 * s[0]), math.exp(0.5 + 10 * s[1])]
        expected = [0.0, *(weight / sum(weights) for weight in weights)]
        assert tilted_reweighting(logits, [0], head).targets[0].tolist() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("prior", PRIORS)
    def test_without_a_tilt_it_is_the_prior(self, prior, logits, monkeypatch):
        monkeypatch.setattr(pseudo_labels_module, "BETA", 0.0)
        found = tilted_reweighting(logits, FORGET, torch.randn(6, 4), prior=prior).targets
        assert torch.equal(found, pseudo_labels(logits, FORGET, None, prior=prior).targets)

    @pytest.mark.parametrize("prior", PRIORS)
    def test_rows_are_distributions_over_retained_classes(self, prior, logits):
        on_the_simplex(tilted_reweighting(logits, FORGET, torch.randn(6, 4), prior=prior).targets)

    @pytest.mark.parametrize("margin", [21.0, 1e3, 1e30])  # 1 - p is 1e-9 and then 0
    def test_an_over_confident_model_is_no_division_by_zero(self, margin):
        head = torch.randn(6, 4)
        logits = torch.tensor([[0.0, margin, -1.0, 0.5, 0.0, -2.0]])
        targets = tilted_reweighting(logits, [1], head).targets
        on_the_simplex(targets, [1])
        calm = tilted_reweighting(torch.tensor([[0.0, 0.0, -1.0, 0.5, 0.0, -2.0]]), [1], head).targets
        torch.testing.assert_close(targets, calm)

    def test_it_is_the_nearest_distribution_to_the_prior_of_its_mean_similarity(self, logits, monkeypatch):
        """Moving probability along any direction that keeps sum and mean similarity raises KL(q || prior)."""
        head = torch.randn(6, 4)
        s = class_similarity(head, FORGET)[KEEP]
        prior = pseudo_labels(logits, FORGET, None).targets[0, KEEP].double()
        monkeypatch.setattr(pseudo_labels_module, "BETA", 2.0)
        q = tilted_reweighting(logits, FORGET, head).targets[0, KEEP].double()
        kl = lambda p: (p * (p / prior).log()).sum()  # noqa: E731
        free = torch.linalg.svd(torch.stack([torch.ones_like(s), s])).Vh[2:]
        for direction in (*free, *-free):
            moved = q + 0.3 * float(q.min()) * direction
            assert kl(moved) > kl(q)

    def test_an_image_s_own_evidence_is_left(self, logits):
        """A class whose row is near the forgotten one's gains, and takes over no image that is told from it."""
        head = torch.eye(10)
        head[1] = 0.6 * head[0] + 0.8 * head[1]  # as a dog's and a cat's
        logits = torch.full((1, 10), -2.0)
        logits[0, [0, 1, 7]] = torch.tensor([4.0, 0.0, 1.5])
        plain, tilted = pseudo_labels(logits, [0], None).targets[0], tilted_reweighting(logits, [0], head).targets[0]
        assert tilted[1] > 1.2 * plain[1] and tilted.argmax() == 7

    def test_a_large_beta_overwrites_the_image(self, logits, monkeypatch):
        head = torch.randn(6, 4)
        monkeypatch.setattr(pseudo_labels_module, "BETA", 1e4)
        targets = tilted_reweighting(logits, FORGET, head).targets
        assert targets.argmax(1).eq(int(class_similarity(head, FORGET).argmax())).all()


class TestClassSimilarity:
    def test_sums_to_one_over_retained_classes(self):
        s = class_similarity(torch.randn(6, 4), FORGET)
        assert s[FORGET].eq(0).all() and s[KEEP].gt(0).all() and float(s.sum()) == pytest.approx(1)

    def test_of_several_classes_it_is_the_mean(self):
        """Each against the same centre: all rows here are retained or asked for."""
        head = torch.randn(6, 4).double()
        head = head - head.mean(0)
        unit = torch.nn.functional.normalize(head, dim=1)
        each = [(unit[u] @ unit[KEEP].T).softmax(0) for u in FORGET]
        torch.testing.assert_close(class_similarity(head, FORGET)[KEEP], (each[0] + each[1]) / 2)

    def test_what_is_added_to_every_row_or_scales_them_does_not_matter(self):
        head = torch.randn(6, 4).double()
        torch.testing.assert_close(class_similarity(3 * head + torch.randn(4), FORGET), class_similarity(head, FORGET))

    def test_rows_of_classes_that_are_long_gone_do_not_matter(self):
        head = torch.randn(6, 4)
        expected = class_similarity(head, FORGET, [4])
        head[1] = 1e3
        assert torch.equal(class_similarity(head, FORGET, [4]), expected) and expected[FORGET].eq(0).all()


@pytest.mark.slow
class TestSimilarityTilt:
    def test_the_paper_s_form_trains_on_the_tilted_prior(self, tmp_path):
        job = trainer(tmp_path, method="zspag_paper", targets="renormalised", tilt="similarity", max_steps=1)
        logits = job.run.classifier.predict(job.run.forget.pixels)
        rows = job.model.classifier.weight.detach().clone()
        job.train()
        expected = tilted_reweighting(logits, [2], rows).targets
        torch.testing.assert_close(job.run.plan.targets, expected)
        assert (expected - pseudo_labels(logits, [2], None).targets).abs().max() > 0.05, "the tilt is seen"

    def test_a_model_without_a_head_is_refused_before_the_attacks(self, tmp_path):
        job = trainer(tmp_path, method="trw")
        job.run.head = None
        with pytest.raises(UnlearningError, match=r"one output for each of its 5 labels.*tilt='none'"):
            job.method.check_model(job.run)


def test_retained_mask():
    assert retained_mask(6, FORGET).tolist() == [True, False, True, True, False, True]
    assert retained_mask(3, []).all() and not retained_mask(3, [0, 1, 2]).any()
