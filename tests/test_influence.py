import pytest
import torch
import torch.nn.functional as F
from cases import MODELS, FlatClassifier, linear_classifier, raw_processor, two_layer_classifier
from sweep import sweep
from torch import nn
from torch.func import functional_call, jacrev

from zspag_hf.pipeline import influence
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.gradients import layer_gradients, loss_gradient, math_attention, mean_gradient
from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.influence import kfac, label_influence, output_gradient_factors
from zspag_hf.pipeline.layers import constrained_layers

KINDS = ["vit", "resnet", "imagegpt", "siglip"]


def setting(classifier, pixels):
    """``(classifier, pixels, labels, layers)``, every class among the labels."""
    labels = torch.arange(len(pixels)) % classifier.num_labels
    return classifier, pixels, labels, constrained_layers(classifier.model, lambda: classifier(pixels))


def whole(name):
    case = next(case for case in MODELS if case.name == name)
    return setting(case.classifier(), case.pixels(6))


@pytest.fixture
def small():
    return setting(two_layer_classifier(), torch.rand(7, 1, 2, 2, dtype=torch.float64))


def flat(vector):
    return torch.cat([part.flatten() for part in vector.values()])


def unflat(values, like):
    sizes = [part.numel() for part in like.values()]
    return {name: v.view_as(like[name]) for name, v in zip(like, values.split(sizes), strict=True)}


def random_vector(layers):
    return {name: torch.randn_like(layer.weight) for name, layer in layers.items()}


def explicit_gauss_newton(classifier, pixels, layers):
    """(1/N) sum_i J_i^T (diag p_i - p_i p_i^T) J_i, as one matrix."""
    weights = {name: layer.weight.detach() for name, layer in layers.items()}

    def logits(values):
        named = {f"model.{name}.weight": w for name, w in unflat(values, weights).items()}
        return functional_call(classifier, named, (pixels,))

    jacobian = jacrev(logits)(flat(weights)).detach()  # (N, C, parameters)
    p = classifier(pixels).softmax(1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / len(pixels)


def dot(a, b):
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))


@pytest.fixture
def at_once(monkeypatch):
    """A function: so many images are differentiated at once."""

    def choose(count):
        for module in ("gradients", "influence"):
            monkeypatch.setattr(f"zspag_hf.pipeline.{module}.gradient_batch", lambda _pixels: count)

    return choose


class TestGradients:
    @pytest.mark.parametrize("targets", ["labels", "distributions"])
    @pytest.mark.parametrize("name", KINDS)
    def test_of_the_mean_over_all_images_by_every_parameter(self, name, targets, at_once):
        classifier, pixels, labels, _ = whole(name)
        if targets == "distributions":
            labels = torch.rand(len(pixels), classifier.num_labels, dtype=torch.float64)
            labels = labels / labels.sum(1, keepdim=True)
        parameters = dict(classifier.model.named_parameters())
        found = []
        for count in (64, 4):
            at_once(count)
            found.append(mean_gradient(classifier, pixels, labels, parameters))
            assert all(p.grad is None for p in classifier.parameters())
        F.cross_entropy(classifier(pixels), labels).backward()
        for got in found:
            assert list(got) == list(parameters)
            for key, parameter in parameters.items():
                expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.testing.assert_close(got[key], expected, rtol=1e-8, atol=1e-12)
                assert not got[key].requires_grad

    def test_of_a_part_it_is_the_sum_over_the_count_that_is_given(self, small):
        classifier, pixels, labels, _ = small
        parameters = dict(classifier.model.named_parameters())
        whole = mean_gradient(classifier, pixels, labels, parameters)
        parts = [
            loss_gradient(classifier, pixels[rows], labels[rows], parameters, len(pixels))
            for rows in (slice(0, 3), slice(3, None))
        ]
        for name, expected in whole.items():
            torch.testing.assert_close(parts[0][name] + parts[1][name], expected)

    def test_by_some_parameters_alone_and_by_layer(self, small):
        classifier, pixels, labels, layers = small
        every = mean_gradient(classifier, pixels, labels, dict(classifier.model.named_parameters()))
        found = layer_gradients(classifier, pixels, labels, layers)
        assert list(found) == list(layers) and len(found) < len(every)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, every[f"{name}.weight"])

    def test_frozen_weights_count_too(self, small):
        classifier, pixels, labels, layers = small
        expected = layer_gradients(classifier, pixels, labels, layers)
        classifier.requires_grad_(False)
        torch.testing.assert_close(layer_gradients(classifier, pixels, labels, layers), expected)
        assert not any(p.requires_grad for p in classifier.parameters())


class TestKfac:
    @pytest.mark.parametrize("name", ["vit", "regnet", "imagegpt", "siglip"])
    def test_a_step_along_v_lowers_the_loss(self, name):
        """For every kind of layer; siglip has layers that run without reaching the logits."""
        classifier, pixels, labels, layers = whole(name)
        g = layer_gradients(classifier, pixels, labels, layers)
        v = kfac(classifier, pixels, layers, collect_grams(classifier, pixels, labels, layers), g)
        assert list(v) == list(layers)
        assert all(v[key].shape == layer.weight.shape and v[key].isfinite().all() for key, layer in layers.items())
        assert dot(v, g) > 0
        before = F.cross_entropy(classifier(pixels), labels).item()
        step = 1e-4 / dot(v, v) ** 0.5
        with torch.no_grad():
            for key, layer in layers.items():
                layer.weight.sub_(step * v[key])
        change = F.cross_entropy(classifier(pixels), labels).item() - before
        assert change == pytest.approx(-step * dot(v, g), rel=0.05)

    def test_is_the_kronecker_solution(self, small):
        """(B + d)^-1 g (A + d)^-1 = (kron(B + d, A + d))^-1 vec g, both factors scaled to a mean eigenvalue of 1."""
        classifier, pixels, labels, layers = small
        grams = collect_grams(classifier, pixels, labels, layers)
        g = layer_gradients(classifier, pixels, labels, layers)
        factors = output_gradient_factors(classifier, pixels, layers, seed=3)
        got = kfac(classifier, pixels, layers, grams, g, seed=3)
        for name in layers:
            scaled = [m[0] / m[0].trace() * len(m[0]) for m in (factors[name], grams[name])]
            b, a = (m + influence.DAMPING * torch.eye(len(m), dtype=torch.float64) for m in scaled)
            expected = torch.linalg.solve(torch.kron(b, a), g[name].flatten()).view_as(g[name])
            torch.testing.assert_close(got[name], expected)

    def constant_probabilities(self, n):
        """A linear classifier whose weight is 0: p = softmax(bias) on every image, so G = B (x) A exactly."""
        torch.manual_seed(1)
        model = FlatClassifier(nn.Linear(4, 3)).double()
        with torch.no_grad():
            model.layers[1].weight.zero_()
            model.layers[1].bias.copy_(torch.tensor([1.0, 0.0, -0.5]))
        pixels = torch.rand(n, 1, 2, 2, dtype=torch.float64) ** 2
        return setting(PixelClassifier(model.eval(), raw_processor()).double(), pixels)

    def test_output_factor_is_the_curvature_of_the_softmax(self, at_once):
        classifier, pixels, _, layers = self.constant_probabilities(20000)
        at_once(5000)
        (factor,) = output_gradient_factors(classifier, pixels, layers)["layers.1"]
        p = classifier(pixels[:1]).softmax(1)[0].detach()
        torch.testing.assert_close(factor / len(pixels), p.diag() - p.outer(p), rtol=0.05, atol=0.003)

    def test_is_exact_up_to_scale_where_the_curvature_is_a_kronecker_product(self, monkeypatch):
        monkeypatch.setattr(influence, "DAMPING", 1e-6)
        classifier, pixels, labels, layers = self.constant_probabilities(3000)
        grams = collect_grams(classifier, pixels, torch.zeros_like(labels), layers)  # one class: A of all the images
        g = torch.randn(3, 4, dtype=torch.float64)
        g -= g.mean(0)  # as every gradient: the rows of diag p - p p^T sum to 0
        v = kfac(classifier, pixels, layers, grams, {"layers.1": g})["layers.1"]
        x, p = pixels.flatten(1), classifier(pixels[:1]).softmax(1)[0].detach()
        a, b = x.T @ x / len(x), p.diag() - p.outer(p)
        some = pixels[:20]
        torch.testing.assert_close(
            explicit_gauss_newton(classifier, some, layers), torch.kron(b, x[:20].T @ x[:20] / 20)
        )
        exact = torch.linalg.pinv(b) @ g @ torch.linalg.inv(a)
        assert F.cosine_similarity(v.flatten(), exact.flatten(), dim=0) > 0.995
        assert F.cosine_similarity(g.flatten(), exact.flatten(), dim=0) < 0.9, "else the identity would pass"

    @pytest.mark.parametrize("groups", [1, 2])
    def test_output_factor_of_a_convolution_sums_over_images_and_positions(self, groups, at_once):
        """Against the exact expectation over labels, sum_k p_k g_k g_k^T, on copies of one image."""
        model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=groups), nn.Tanh(), FlatClassifier(nn.Linear(16, 3)))
        model = model.double().eval()
        model.config = model[2].config
        model.forward = lambda pixel_values: model[2](model[1](model[0](pixel_values)))
        classifier = PixelClassifier(model, raw_processor()).double()
        image = torch.rand(1, 2, 3, 3, dtype=torch.float64)
        layers = {
            name: layer for name, layer in constrained_layers(model, lambda: classifier(image)).items() if name == "0"
        }
        copies = 5000
        at_once(2500)
        (got,) = output_gradient_factors(classifier, image.expand(copies, -1, -1, -1), layers).values()
        out = model[0](image)
        logits = model[2](model[1](out)).logits
        expected = torch.zeros_like(got)
        for p, log_p in zip(logits.softmax(1)[0], logits.log_softmax(1)[0], strict=True):
            rows = torch.autograd.grad(-log_p, out, retain_graph=True)[0][0].flatten(1).T  # (positions, out)
            by_group = rows.view(-1, groups, 4 // groups).movedim(1, 0)
            expected += p.detach() * by_group.mT @ by_group
        torch.testing.assert_close(got / copies, expected, rtol=0.1, atol=0.05 * float(expected.max()))

    def test_a_layer_that_does_not_reach_the_logits_gets_zeros(self):
        classifier, pixels, _, layers = whole("siglip")
        factors = output_gradient_factors(classifier, pixels, layers)
        silent = [name for name, factor in factors.items() if not factor.any()]
        assert silent == ["vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"]
        assert factors[silent[0]].shape == (1, 24, 24)

    def test_same_seed_same_answer(self, small):
        classifier, pixels, _, layers = small
        first, second, other = (output_gradient_factors(classifier, pixels, layers, seed=s) for s in (0, 0, 5))
        assert all(torch.equal(first[name], second[name]) for name in layers)
        assert any(not torch.equal(first[name], other[name]) for name in layers)


def literal_influence(classifier, pixels, v, layers):
    """-v . grad log p_k(x_i), one backward pass a label."""
    weights = [layer.weight for layer in layers.values()]
    rows = []
    for image in pixels:
        log_p = classifier(image[None]).log_softmax(1)[0]
        row = []
        for k in range(len(log_p)):
            grads = torch.autograd.grad(log_p[k], weights, retain_graph=True, allow_unused=True)
            row.append(-sum((g * v[name]).sum() for name, g in zip(layers, grads, strict=True) if g is not None))
        rows.append(torch.stack(row))
    return torch.stack(rows)


class TestLabelInfluence:
    @pytest.mark.parametrize("case", sweep("vit", "resnet"))
    def test_equals_one_backward_pass_a_label(self, case, at_once):
        classifier, pixels, _, layers = setting(case.classifier(), case.pixels(3))
        v = random_vector(layers)
        at_once(2)
        got = label_influence(classifier, pixels, v, layers)
        expected = literal_influence(classifier, pixels, v, layers)
        assert got.shape == (3, 5) and got.dtype == torch.float32 and got.device.type == "cpu"
        assert (got - expected).abs().max() < 1e-6 * expected.abs().max()

    def test_of_a_linear_model_in_closed_form(self):
        """-v . grad log p_k = -(e_k - p)^T v x."""
        classifier, pixels, _, layers = setting(linear_classifier(), torch.rand(5, 1, 3, 3, dtype=torch.float64))
        v = random_vector(layers)
        p = classifier(pixels).softmax(1).detach()
        along = pixels.flatten(1) @ v["layers.1"].T
        expected = (p * along).sum(1, keepdim=True) - along
        torch.testing.assert_close(
            label_influence(classifier, pixels, v, layers).double(), expected, rtol=1e-5, atol=1e-6
        )

    def test_expectation_under_the_model_is_zero(self, vit):
        """sum_k p_k grad log p_k = 0."""
        classifier, pixels, _, layers = whole("vit")
        a = label_influence(classifier, pixels, random_vector(layers), layers).double()
        p = classifier.predict(pixels).double().softmax(1)
        assert (p * a).sum(1).abs().max() < 1e-5 * a.abs().max()

    def test_leaves_model_and_gradients_alone(self):
        classifier, pixels, _, layers = whole("resnet")
        state = {name: value.clone() for name, value in classifier.state_dict().items()}
        label_influence(classifier, pixels, random_vector(layers), layers)
        assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in classifier.parameters())

    def test_sign_training_on_the_label_of_largest_influence_lowers_the_proxies_loss_most(self):
        """One small step on (x, k) changes the proxies' loss by -step a_k, with v the gradient itself."""
        classifier, proxies, labels, layers = whole("vit")
        forget = torch.rand(1, 3, 8, 8, dtype=torch.float64)
        v = layer_gradients(classifier, proxies, labels, layers)
        a = label_influence(classifier, forget, v, layers)[0]
        before = F.cross_entropy(classifier(proxies), labels).item()
        changes = []
        for k in range(classifier.num_labels):
            gradient = layer_gradients(classifier, forget, torch.tensor([k]), layers)
            kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
            with torch.no_grad():
                for name, layer in layers.items():
                    layer.weight.sub_(1e-5 * gradient[name])
                changes.append(F.cross_entropy(classifier(proxies), labels).item() - before)
                for name, layer in layers.items():
                    layer.weight.copy_(kept[name])
        changes = torch.tensor(changes)
        assert changes.argmin() == a.argmax() and changes.argmax() == a.argmin()
        torch.testing.assert_close(changes, -1e-5 * a, rtol=0.02, atol=1e-9)


def kernels():
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("stage", ["gradients", "factors", "influence"])
def test_stages_run_in_eval_mode(stage):
    """Dropout and batch statistics have no place in a derivative; running statistics must not move."""
    classifier, pixels, labels, layers = whole("resnet")
    v = random_vector(layers)
    run = {
        "gradients": lambda: layer_gradients(classifier, pixels, labels, layers),
        "factors": lambda: output_gradient_factors(classifier, pixels, layers),
        "influence": lambda: {"all": label_influence(classifier, pixels, v, layers)},
    }[stage]
    expected, state = run(), {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.model.train()
    got = run()
    for name, part in expected.items():
        torch.testing.assert_close(got[name], part)
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())


@pytest.fixture
def every_kernel():
    """All attention kernels on, as they are by default; as they were afterwards."""
    cuda, before = torch.backends.cuda, kernels()
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp
    for switch in switches:
        switch(True)
    yield
    for switch, value in zip(switches, before, strict=True):
        switch(value)


@pytest.mark.usefixtures("every_kernel")
class TestMathAttention:
    def test_restores_the_kernels(self):
        before = kernels()
        with math_attention():
            assert kernels()[:3] == (False, False, True)
        assert kernels() == before
        with pytest.raises(RuntimeError, match="stop"), math_attention():
            raise RuntimeError("stop")
        assert kernels() == before

    def test_restores_what_the_user_had_switched_off(self):
        before = kernels()
        torch.backends.cuda.enable_flash_sdp(False)
        with math_attention():
            pass
        assert kernels() == (False, *before[1:])

    def test_the_stage_functions_restore_them_too(self):
        before = kernels()
        classifier, pixels, _, layers = whole("vit")
        label_influence(classifier, pixels, random_vector(layers), layers)
        assert kernels() == before
