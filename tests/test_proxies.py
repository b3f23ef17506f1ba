import pytest
import torch
from cases import linear_classifier, two_layer_classifier

from zspag_hf.errors import UnlearningError
from zspag_hf.pipeline.attacks import PGDL2, AttackResult, PGDLinf
from zspag_hf.pipeline.proxies import POLICIES, make_proxies, quota_pairs

FORGET = [1, 4]


class Spy(PGDLinf):
    """Notes what was attacked towards what at which radius, then attacks."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = []

    def __call__(self, classifier, pixels, target):
        self.seen += [(self.eps, k) for k in target.tolist()]
        return super().__call__(classifier, pixels, target)


class Scripted:
    """An attack whose answers are given: ``answer(target, eps) -> predicted label``."""

    def __init__(self, answer, eps=0.1):
        self.answer, self.eps, self.seen = answer, eps, []

    def at_eps(self, eps):
        other = Scripted(self.answer, eps)
        other.seen = self.seen
        return other

    def __call__(self, classifier, pixels, target):
        self.seen += [(self.eps, k) for k in target.tolist()]
        predicted = torch.tensor([self.answer(t, self.eps) for t in target.tolist()])
        return AttackResult(pixels.double(), predicted, predicted == target, torch.zeros_like(predicted))


@pytest.fixture
def images():
    return 0.3 + 0.4 * torch.rand(12, 1, 4, 4, dtype=torch.float64)


def strong(**settings):
    return Spy(eps=0.5, steps=40, **settings)


class TestQuota:
    @pytest.mark.parametrize("per_class", [1, 5, 12])
    def test_every_retained_class_gets_its_quota(self, easy, images, per_class):
        proxies = make_proxies(easy, images, FORGET, strong(), per_class=per_class)
        assert proxies.per_class == {k: per_class for k in (0, 2, 3, 5)}
        assert proxies.shortfall == {}
        assert len(proxies) == proxies.attempted == 4 * per_class
        assert proxies.attack_success_rate == 1

    def test_forgotten_classes_are_neither_targets_nor_labels(self, easy, images):
        attack = strong()
        proxies = make_proxies(easy, images, FORGET, attack, per_class=6)
        assert {target for _, target in attack.seen} == {0, 2, 3, 5}
        assert not set(proxies.labels.tolist()) & set(FORGET)
        assert not set(proxies.per_class) & set(FORGET)

    def test_labels_are_what_the_model_says_and_pixels_are_images(self, easy, images):
        proxies = make_proxies(easy, images, FORGET, strong(), per_class=3)
        assert torch.equal(proxies.labels, easy.predict(proxies.pixels).argmax(1))
        assert proxies.pixels.shape == (len(proxies), 1, 4, 4)
        assert proxies.pixels.min() >= 0 and proxies.pixels.max() <= 1
        assert proxies.pixels.device.type == proxies.labels.device.type == "cpu"

    def test_images_are_those_nearest_to_the_class(self):
        """Second-best class first (eq. 2), then by logit."""
        logits = torch.tensor(
            [
                # class 0 is forgotten
                [9.0, 3.0, 2.0, 0.0],  # second best: 1
                [9.0, 5.0, 6.0, 0.0],  # second best: 2, though its logit for 1 is the largest
                [9.0, 1.0, 0.5, 0.0],  # second best: 1
                [9.0, 2.5, 4.0, 0.0],  # second best: 2
            ]
        )
        pairs, quota = quota_pairs(logits, [0], per_class=3, max_proxies=100)
        assert quota == 3
        towards = {k: [i for i, target in pairs if target == k] for k in (1, 2, 3)}
        assert towards[1] == [0, 2, 1]
        assert towards[2] == [1, 3, 0]
        assert len(towards[3]) == 3

    def test_the_choice_does_not_depend_on_the_scale_or_shift_of_logits(self):
        logits = torch.randn(20, 6, dtype=torch.float64)
        reference = quota_pairs(logits, FORGET, 5, 1000)
        assert quota_pairs(100 * logits, FORGET, 5, 1000) == reference
        assert quota_pairs(logits - 50, FORGET, 5, 1000) == reference

    @pytest.mark.parametrize("max_proxies", [1, 3, 4, 7, 9, 20, 1000])
    def test_the_total_is_bounded_and_shared_evenly(self, easy, images, max_proxies):
        proxies = make_proxies(easy, images, FORGET, strong(), per_class=6, max_proxies=max_proxies)
        assert len(proxies) <= proxies.attempted <= max_proxies
        served = [k for k, n in proxies.per_class.items() if n]
        assert len(served) == min(4, max_proxies)
        assert len({proxies.per_class[k] for k in served}) == 1
        assert all(proxies.shortfall[k] > 0 for k in proxies.per_class if k not in served)

    def test_beyond_the_bound_the_likeliest_classes_are_served(self):
        logits = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 1.5, 2.5, 2.2]])
        pairs, quota = quota_pairs(logits, [0], per_class=5, max_proxies=2)
        assert quota == 1 and {k for _, k in pairs} == {2, 3}

    def test_no_image_is_attacked_twice_towards_one_class(self):
        pairs, quota = quota_pairs(torch.randn(3, 6), FORGET, per_class=100, max_proxies=1000)
        assert quota == 3 and len(set(pairs)) == len(pairs) == 12

    def test_per_class_and_shortfall_add_up_to_the_quota(self, easy, images):
        weak = PGDLinf(eps=0.02, steps=3)
        proxies = make_proxies(easy, images, FORGET, weak, per_class=7, eps_doublings=0)
        assert 0 < len(proxies) < proxies.attempted == 28
        assert sum(proxies.per_class.values()) == len(proxies)
        assert torch.equal(
            torch.bincount(proxies.labels, minlength=6)[[0, 2, 3, 5]], torch.tensor(list(proxies.per_class.values()))
        )
        for k, n in proxies.per_class.items():
            assert proxies.shortfall.get(k, 0) == max(0, 7 - n)
        assert proxies.attack_success_rate == len(proxies) / 28


class TestSecondRadius:
    def test_what_did_not_cross_is_tried_again_with_twice_the_radius(self, easy, images):
        attack = Scripted(lambda target, eps: target if target in (0, 2) or eps > 0.3 else 1)
        proxies = make_proxies(easy, images, FORGET, attack, per_class=2, eps_doublings=2)
        by_radius = {eps: sorted(t for e, t in attack.seen if e == eps) for eps in {e for e, *_ in attack.seen}}
        assert by_radius == {0.1: [0, 0, 2, 2, 3, 3, 5, 5], 0.2: [3, 3, 5, 5], 0.4: [3, 3, 5, 5]}
        assert proxies.per_class == {0: 2, 2: 2, 3: 2, 5: 2}
        assert proxies.attempted == 8 and proxies.attack_success_rate == 1

    def test_the_last_radius_takes_any_retained_class(self, easy, images):
        attack = Scripted(lambda target, eps: 0)
        proxies = make_proxies(easy, images, FORGET, attack, per_class=2, eps_doublings=1)
        assert [eps for eps, *_ in attack.seen] == [0.1] * 8 + [0.2] * 6
        assert proxies.per_class == {0: 8, 2: 0, 3: 0, 5: 0}
        assert proxies.shortfall == {2: 2, 3: 2, 5: 2}

    def test_proxies_that_end_in_a_forgotten_class_are_dropped(self, easy, images):
        attack = Scripted(lambda target, eps: {0: 1, 2: 4, 3: 3, 5: 5}[target])
        proxies = make_proxies(easy, images, FORGET, attack, per_class=2)
        assert sorted(proxies.labels.tolist()) == [3, 3, 5, 5]
        assert proxies.shortfall == {0: 2, 2: 2} and proxies.attack_success_rate == 0.5

    def test_no_success_at_all_is_an_error_that_names_the_last_radius(self, easy, images):
        for policy in POLICIES:
            attack = Scripted(lambda target, eps: 4)
            with pytest.raises(UnlearningError, match="attack_eps") as error:
                make_proxies(easy, images, FORGET, attack, policy=policy)
            assert ("0.4" if policy == "quota" else "0.1") in str(error.value)


class TestSecondPolicy:
    """Eq. 2 as written: y_t = argmax over k not in {y} of f_k(x)."""

    def test_each_image_is_attacked_once_towards_its_second_best_class(self, images):
        classifier = linear_classifier(num_labels=6, channels=1, size=4, gain=8.0)
        forgotten = int(classifier.predict(images).argmax(1).mode().values)
        own = images[classifier.predict(images).argmax(1) == forgotten]
        assert len(own) >= 2
        attack = strong()
        make_proxies(classifier, own, [forgotten], attack, policy="second")
        expected = classifier.predict(own).topk(2).indices[:, 1]
        assert [target for *_, target in attack.seen] == expected.tolist()
        assert {eps for eps, *_ in attack.seen} == {0.5}

    def test_other_forgotten_classes_are_passed_over(self, easy, images):
        attack = strong()
        make_proxies(easy, images, FORGET, attack, policy="second")
        logits = easy.predict(images)
        logits[:, FORGET] = -torch.inf
        assert [target for *_, target in attack.seen] == logits.argmax(1).tolist()

    def test_any_retained_class_counts(self, easy, images):
        attack = Scripted(lambda target, eps: 3 if target != 3 else 1)
        proxies = make_proxies(easy, images, FORGET, attack, policy="second")
        assert len(attack.seen) == proxies.attempted == 12
        assert set(proxies.labels.tolist()) == {3} and proxies.shortfall == {}


@pytest.mark.parametrize("policy", POLICIES)
class TestReproducible:
    def make(self, easy, images, policy):
        return make_proxies(easy, images, FORGET, PGDLinf(eps=0.06, steps=4), policy=policy, per_class=5)

    def test_neither_batch_size_nor_the_global_seed_matters(self, easy, images, policy, monkeypatch):
        whole = self.make(easy, images, policy)
        for batch_size in (1, 5):
            torch.manual_seed(99)
            monkeypatch.setattr("zspag_hf.pipeline.proxies.gradient_batch", lambda _pixels, size=batch_size: size)
            parts = self.make(easy, images, policy)
            assert torch.equal(whole.labels, parts.labels)
            torch.testing.assert_close(whole.pixels, parts.pixels, rtol=0, atol=1e-9)
            assert (whole.per_class, whole.shortfall) == (parts.per_class, parts.shortfall)

    def test_global_random_state_is_left_alone(self, easy, images, policy):
        state = torch.get_rng_state()
        self.make(easy, images, policy)
        assert torch.equal(torch.get_rng_state(), state)


def test_every_class_forgotten_is_an_error_before_any_work(easy, images):
    for policy in POLICIES:
        attack = strong()
        with pytest.raises(UnlearningError, match="all 6 classes"):
            make_proxies(easy, images, list(range(6)), attack, policy=policy)
        assert attack.seen == []


def test_a_class_the_model_already_gives_needs_no_step(easy, images):
    """A misclassified forget image is its own proxy."""
    answers = easy.predict(images).argmax(1)
    forgotten = [k for k in range(6) if k != int(answers[0])]
    proxies = make_proxies(easy, images[:1], forgotten, PGDL2(), per_class=1)
    assert torch.equal(proxies.pixels, images[:1]) and proxies.labels.tolist() == [int(answers[0])]


def test_uint8_and_float_images_make_the_same_proxies(vit):
    classifier = vit.classifier(torch.float32)
    pixels = (vit.pixels(3) * 255).to(torch.uint8)
    made = [make_proxies(classifier, x, [0], PGDLinf(steps=5), per_class=2) for x in (pixels, pixels.float() / 255)]
    assert torch.equal(made[0].pixels, made[1].pixels) and made[0].pixels.dtype == torch.float32


def test_where_classes_stay_no_image_is_a_proxy_of_its_own_class():
    """Else it would be its own proxy, unchanged, and the constraint would keep what is to be forgotten."""
    classifier = two_layer_classifier(width=6, num_labels=4)
    pixels = torch.rand(12, 1, 2, 2)
    own = classifier.predict(pixels).argmax(1)
    for policy in ("quota", "second"):
        found = make_proxies(classifier, pixels, [], PGDLinf(eps=0.5), policy=policy, per_class=12, own=own)
        same = (found.pixels[:, None] == pixels[None]).flatten(2).all(2)
        assert not same.any(), policy
        assert len(found) and (classifier.predict(found.pixels).argmax(1) == found.labels).all()
