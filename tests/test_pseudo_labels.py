import pytest
import torch

from zspag_hf.pseudo_labels import PRIORS, SIGNS, paper_pseudo_labels, pseudo_labels, retained_mask

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

    @pytest.mark.parametrize("kl_weight", [0.0, 0.5, 1.0, 10.0])
    def test_rows_are_distributions_over_retained_classes(self, influence, labels, kl_weight):
        on_the_simplex(paper_pseudo_labels(influence, labels, FORGET, kl_weight).targets)

    def test_same_seed_same_labels(self, influence, labels):
        first = paper_pseudo_labels(influence, labels, FORGET, seed=3).targets
        torch.manual_seed(99)
        assert torch.equal(paper_pseudo_labels(influence, labels, FORGET, seed=3).targets, first)
        few = (paper_pseudo_labels(influence, labels, FORGET, steps=2, seed=s).targets for s in (3, 4))
        assert not torch.allclose(*few, atol=1e-2)

    def test_the_start_is_a_random_softmax(self, influence, labels):
        z = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
        z[:, FORGET] = -torch.inf
        torch.testing.assert_close(
            paper_pseudo_labels(influence, labels, FORGET, steps=0, seed=3).targets, z.softmax(1)
        )

    def test_descends_eq_10(self, influence, labels):
        """Without the penalty, sum_k y_k a_ik goes down from its start, towards the smallest a."""
        change = [
            (paper_pseudo_labels(influence, labels, FORGET, kl_weight=0.0, steps=n).targets * influence).sum(1)
            for n in (0, 20, 400)
        ]
        assert (change[1] < change[0]).all() and (change[2] < change[1]).all()
        smallest = influence[:, KEEP].amin(1)
        assert (change[2] - smallest < 0.1 * (change[0] - smallest) + 0.02).all()

    def test_the_penalty_pushes_away_from_the_true_label(self, influence):
        """With the true label among the allowed ones, its share shrinks as the weight grows."""
        labels = torch.tensor([0, 2, 3, 5, 0, 2, 3])
        shares = [
            paper_pseudo_labels(0.1 * influence, labels, FORGET, weight).targets.gather(1, labels[:, None]).mean()
            for weight in (0.0, 0.1, 3.0)
        ]
        assert shares[0] > shares[1] > shares[2]
        assert shares[2] < 0.05

    def test_influence_is_left_alone_and_returned(self, influence, labels):
        kept = influence.clone()
        result = paper_pseudo_labels(influence, labels, FORGET)
        assert result.influence is influence and torch.equal(influence, kept)
        assert not result.targets.requires_grad

    def test_works_inside_no_grad(self, influence, labels):
        expected = paper_pseudo_labels(influence, labels, FORGET).targets
        with torch.no_grad():
            assert torch.equal(paper_pseudo_labels(influence, labels, FORGET).targets, expected)


def test_retained_mask():
    assert retained_mask(6, FORGET).tolist() == [True, False, True, True, False, True]
    assert retained_mask(3, []).all() and not retained_mask(3, [0, 1, 2]).any()
