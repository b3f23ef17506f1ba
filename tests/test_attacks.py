import pytest
import torch
import torch.nn.functional as F
from cases import linear_classifier
from sweep import sweep
from torch import nn

from zspag_hf.errors import UnlearningError
from zspag_hf.pipeline.attacks import ATTACKS, CW, FGSM, PGDL2, DeepFool, PGDLinf, l2

RADIUS = {"inf": 0.1, "2": 0.6}
STEPS = 6


def build(name, **settings):
    kind = ATTACKS[name]
    return kind(**{"eps": RADIUS[kind.norm], "steps": STEPS} | settings)


def distance(attack, pixels, clean):
    delta = (pixels - clean).flatten(1)
    return delta.abs().amax(1) if attack.norm == "inf" else delta.norm(dim=1)


@pytest.fixture(scope="module", params=sweep("vit", among=("vit", "resnet")))
def victim(request):
    """``(classifier, pixels, targets)``: half of the images uint8-like extremes, every target the second-best class."""
    case = request.param
    classifier, pixels = case.classifier(), case.pixels(5)
    pixels[0], pixels[1] = pixels[0].round(), pixels[1] * 0.1
    with torch.no_grad():
        targets = classifier(pixels).topk(2).indices[:, 1]
    return classifier, pixels, targets


@pytest.mark.parametrize("leave_early", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
class TestContract:
    @pytest.fixture
    def attack(self, name, leave_early):
        return build(name, leave_early=leave_early)

    def test_pixels_stay_in_the_box_and_in_the_ball(self, attack, victim):
        classifier, pixels, targets = victim
        result = attack(classifier, pixels, targets)
        assert result.pixels.shape == pixels.shape
        assert result.pixels.min() >= 0 and result.pixels.max() <= 1
        assert (distance(attack, result.pixels, pixels) <= attack.eps * (1 + 1e-9)).all()

    def test_the_ball_binds(self, name, attack, victim):
        """A radius too small to cross is used up, or the test above would pass with no ball at all."""
        classifier, pixels, targets = victim
        small = attack.at_eps(attack.eps / 1000)
        if name in ("cw", "deepfool"):
            small.step_size = attack.step_size  # not lengths: a step that leaves the ball
        result = small(classifier, pixels, targets)
        far = distance(small, result.pixels, pixels)
        assert (far[2:] >= small.eps * 0.9).all() and (far <= small.eps * (1 + 1e-9)).all()

    def test_predicted_and_crossed_are_what_the_model_says(self, attack, victim):
        classifier, pixels, targets = victim
        result = attack(classifier, pixels, targets)
        assert torch.equal(result.predicted, classifier.predict(result.pixels).argmax(1))
        assert torch.equal(result.crossed, result.predicted == targets)

    def test_an_image_does_not_depend_on_its_batch(self, attack, victim):
        classifier, pixels, targets = victim
        together = attack(classifier, pixels, targets)
        for i in range(len(pixels)):
            alone = attack(classifier, pixels[i : i + 1], targets[i : i + 1])
            torch.testing.assert_close(alone.pixels[0], together.pixels[i], rtol=0, atol=1e-7)
            assert alone.predicted[0] == together.predicted[i]
            assert alone.steps[0] == together.steps[i]

    def test_the_target_becomes_likelier(self, attack, victim):
        classifier, pixels, targets = victim
        result = attack(classifier, pixels, targets)
        before, after = (
            F.cross_entropy(classifier.predict(x), targets, reduction="none") for x in (pixels, result.pixels)
        )
        assert after.mean() < before.mean()

    def test_input_and_model_are_left_alone(self, attack, victim):
        classifier, pixels, targets = victim
        kept, state = pixels.clone(), {k: v.clone() for k, v in classifier.state_dict().items()}
        result = attack(classifier, pixels, targets)
        assert torch.equal(pixels, kept) and not pixels.requires_grad
        assert not result.pixels.requires_grad
        assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
        assert all(torch.equal(v, state[k]) for k, v in classifier.state_dict().items())

    def test_an_image_already_there_is_returned_as_it_is(self, attack, leave_early, victim):
        classifier, pixels, _ = victim
        result = attack(classifier, pixels, classifier.predict(pixels).argmax(1))
        assert result.crossed.any()
        if leave_early:
            assert torch.equal(result.pixels, pixels) and result.crossed.all() and (result.steps == 0).all()

    def test_attacks_the_model_in_eval_mode(self, attack, victim):
        """Batch statistics and dropout would make the answer depend on the batch."""
        classifier, pixels, targets = victim
        expected = attack(classifier, pixels, targets)
        modules = list(classifier.model.modules())
        for module in modules:  # a norm that a user keeps in eval mode, in a model that trains
            module.training = not isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))
        mode = [module.training for module in modules]
        result = attack(classifier, pixels, targets)
        assert [module.training for module in modules] == mode and len(set(mode)) == 2, "each in the mode it was in"
        classifier.model.eval()
        assert torch.equal(result.pixels, expected.pixels)

    @pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0), (0.0, float("nan"))])
    def test_floats_outside_of_the_box_are_refused_not_clipped(self, attack, victim, low, high):
        classifier, pixels, targets = victim
        with pytest.raises(UnlearningError, match=r"no images to attack.*floats in \[0, 1\]"):
            attack(classifier, low + (high - low) * pixels, targets)

    def test_works_inside_no_grad(self, attack, victim):
        classifier, pixels, targets = victim
        with torch.no_grad():
            inside = attack(classifier, pixels, targets)
        torch.testing.assert_close(inside.pixels, attack(classifier, pixels, targets).pixels)


@pytest.mark.parametrize("name", ATTACKS)
class TestEachAttack:
    def test_every_image_reaches_every_class_of_an_easy_classifier(self, name, easy):
        pixels = 0.3 + 0.4 * torch.rand(6, 1, 4, 4, dtype=torch.float64)
        attack = build(name, eps={"inf": 0.5, "2": 2.0}[ATTACKS[name].norm], steps=60)
        for target in range(easy.num_labels):
            result = attack(easy, pixels, torch.full((6,), target))
            if name == "fgsm":  # one step is not made to succeed
                assert (result.steps <= 1).all() and result.crossed.float().mean() >= 0.5
            else:
                assert result.crossed.all(), (target, result.steps)

    def test_leaving_early_never_takes_more_steps(self, name, victim):
        classifier, pixels, targets = victim
        early, late = (build(name, leave_early=value)(classifier, pixels, targets) for value in (True, False))
        assert (early.steps <= late.steps).all()
        assert (late.steps == build(name).steps).all()
        assert (early.steps[early.crossed & (early.steps > 0)] <= build(name).steps).all()

    def test_leaving_early_stops_at_the_first_success(self, name, victim):
        """With one step fewer the same image has not crossed."""
        classifier, pixels, targets = victim
        result = build(name)(classifier, pixels, targets)
        for i in (result.crossed & (result.steps > 0)).nonzero().squeeze(1).tolist():
            fewer = build(name)
            fewer.steps = int(result.steps[i]) - 1
            assert not fewer(classifier, pixels[i : i + 1], targets[i : i + 1]).crossed

    def test_uint8_pixels_are_taken(self, name, vit):
        classifier = vit.classifier(torch.float32)
        pixels = (vit.pixels(2) * 255).to(torch.uint8)
        targets = classifier.predict(pixels).argmin(1)
        result = build(name)(classifier, pixels, targets)
        assert torch.equal(result.pixels, build(name)(classifier, pixels.float() / 255, targets).pixels)

    def test_another_radius_keeps_every_other_setting(self, name):
        changed = {"leave_early": False} | {"cw": {"c": 3.0, "kappa": 0.5}}.get(name, {})
        attack = build(name, **changed)
        wider = attack.at_eps(2 * attack.eps)
        assert type(wider) is type(attack) and wider.eps == 2 * attack.eps and attack.eps == build(name).eps
        rest = [{k: v for k, v in vars(a).items() if k not in ("eps", "step_size")} for a in (attack, wider)]
        assert rest[0] == rest[1]
        factor = 1 if name == "deepfool" else 2  # its step size is the overshoot, not a length
        assert wider.step_size == pytest.approx(factor * attack.step_size)


def weight_of(classifier):
    return classifier.model.layers[1].weight.detach()


def middle(n=4, size=3):
    return 0.5 + 0.02 * torch.randn(n, 1, size, size, dtype=torch.float64)


def descent(classifier, clean, targets):
    """Gradient of CE(f(x), target) of a linear classifier, in closed form: W^T (p - e_target)."""
    p = classifier(clean).softmax(1).detach()
    return ((p - F.one_hot(targets, p.shape[1])) @ weight_of(classifier)).view_as(clean)


class TestClosedForms:
    """On a linear classifier, in the middle of the box, one step is known."""

    @pytest.fixture
    def linear(self):
        classifier, clean = linear_classifier(gain=3.0), middle()
        return classifier, clean, classifier(clean).argmin(1)

    def test_pgd_l2_steps_down_the_normalised_gradient(self, linear):
        classifier, clean, targets = linear
        moved = PGDL2(eps=1.0, steps=1, step_size=0.01)(classifier, clean, targets).pixels - clean
        g = descent(classifier, clean, targets)
        torch.testing.assert_close(moved, -0.01 * g / l2(g))

    def test_pgd_linf_steps_down_the_sign_of_the_gradient(self, linear):
        classifier, clean, targets = linear
        moved = PGDLinf(eps=1.0, steps=1, step_size=0.01)(classifier, clean, targets).pixels - clean
        torch.testing.assert_close(moved, -0.01 * descent(classifier, clean, targets).sign())

    def test_fgsm_takes_one_step_of_the_whole_radius(self, linear):
        classifier, clean, targets = linear
        attack = FGSM(eps=0.1, steps=50, leave_early=False)
        assert attack.steps == 1 and attack.at_eps(0.2).step_size == pytest.approx(0.2)
        moved = attack(classifier, clean, targets).pixels - clean
        torch.testing.assert_close(moved, -0.1 * descent(classifier, clean, targets).sign())

    def test_deepfool_lands_the_overshoot_beyond_the_boundary(self):
        """Two classes: one step of (1 + overshoot) times the distance (f_y - f_t) / ||w_t - w_y||, the reference's
        1e-4 on the gap included."""
        classifier, clean = linear_classifier(num_labels=2, gain=3.0), middle(6)
        logits = classifier(clean).detach()
        targets = logits.argmin(1)
        result = DeepFool(eps=10.0, step_size=0.02)(classifier, clean, targets)
        w = (weight_of(classifier)[0] - weight_of(classifier)[1]).norm()
        gap = (logits[:, 0] - logits[:, 1]).abs()
        assert result.crossed.all() and (result.steps == 1).all()
        torch.testing.assert_close(l2(result.pixels - clean).flatten(), 1.02 * (gap + 1e-4) / w)
        beyond = classifier(result.pixels).detach()
        torch.testing.assert_close((beyond[:, 0] - beyond[:, 1]).abs(), 0.02 * gap + 1.02e-4)

    def test_deepfool_of_many_classes_stays_near_the_boundary(self, linear):
        classifier, clean, targets = linear
        result = DeepFool(eps=10.0)(classifier, clean, targets)
        top = classifier(result.pixels).topk(2).values.detach()
        before = classifier(clean).detach()
        assert result.crossed.all()
        assert (top[:, 0] - top[:, 1] < 0.1 * (before.amax(1) - before.amin(1))).all()

    def test_cw_is_adam_on_w(self, linear):
        """The whole trajectory of the published attack, pixels as (tanh w + 1) / 2, by torch's own Adam."""
        classifier, clean, targets = linear
        attack = CW(eps=1e9, steps=25, step_size=0.05, leave_early=False, c=2.0, kappa=0.3)
        w = (2 * clean - 1).atanh().requires_grad_()
        adam = torch.optim.Adam([w], lr=0.05)
        for _ in range(attack.steps):
            x = (w.tanh() + 1) / 2
            logits = classifier(x)
            target = logits.gather(1, targets[:, None]).squeeze(1)
            other = torch.stack([row[torch.arange(4) != t].max() for row, t in zip(logits, targets, strict=True)])
            loss = (x - clean).square().sum() + 2.0 * (other - target).clamp_min(-0.3).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        expected = ((w.tanh() + 1) / 2).detach()
        assert (expected - clean).abs().max() > 0.1
        torch.testing.assert_close(attack(classifier, clean, targets).pixels, expected, rtol=0, atol=1e-6)


class TestCW:
    x = torch.zeros(1, 1, 1, 1)

    def loss(self, logits, target, **settings):
        return float(CW(**settings).loss(torch.tensor([logits]), torch.tensor([target]), self.x, self.x))

    def test_negative_logits_compete_too(self):
        """The reference multiplies by a one-hot: 0 would win, and the margin would be 5."""
        assert self.loss([-5.0, -3.0, -9.0], 0, c=2.0) == pytest.approx(2 * 2)

    def test_the_target_does_not_compete_with_itself(self):
        assert self.loss([4.0, 1.0, 0.0], 0, c=2.0, kappa=10.0) == pytest.approx(2 * -3)

    def test_the_margin_ends_at_kappa(self):
        assert self.loss([4.0, 1.0, 0.0], 0, c=2.0) == 0
        assert self.loss([4.0, 1.0, 0.0], 0, c=2.0, kappa=1.5) == pytest.approx(2 * -1.5)

    def test_black_and_white_pixels_stay_finite(self, vit):
        classifier = vit.classifier()
        pixels = vit.pixels(3).round()
        result = CW(steps=5)(classifier, pixels, classifier.predict(pixels).argmin(1))
        assert result.pixels.isfinite().all()

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64])
    def test_it_moves_black_and_white_pixels_across(self, kind):
        """A step of w from there is less than a rounding of x, so w has to be kept."""
        classifier, pixels = linear_classifier(gain=3.0), torch.rand(8, 1, 3, 3).round().double()
        targets = classifier(pixels).topk(2).indices[:, 1]
        result = CW()(classifier.to(kind), pixels.to(kind), targets)
        assert result.crossed.all() and (result.pixels - pixels).abs().amax((1, 2, 3)).gt(0.01).all()
