"""The forgotten classes' rows: one small probability on every image, and nothing else moved."""

import pytest
import torch
from cases import two_layer_classifier
from sweep import sweep
from torch import nn

from zspag_hf.adaptive.head import RIDGE, fit_unseen_rows, head_inputs, unseen_level
from zspag_hf.pipeline.layers import constrained_layers, head_name


@pytest.fixture(params=sweep("vit", "resnet"))
def case(request):
    return request.param


def setting(case):
    classifier = case.classifier(torch.float32)
    pixels = case.pixels(40, torch.float32)
    layers = constrained_layers(classifier.model.eval(), lambda: classifier(pixels[:2]))
    return classifier, layers, head_name(layers, classifier.num_labels), pixels[:16], pixels[16:]


def test_the_level_is_what_a_class_gets_that_an_image_surely_is_not():
    """Against the quantile by hand: of three retained classes, a tenth of the way from the least to the middle one."""
    p = torch.tensor([[0.2, 0.7, 0.099, 0.001], [0.1, 0.898, 0.0, 0.002], [0.3, 0.3, 0.394, 0.006]])
    kept = (p[:, 1:] / p[:, 1:].sum(1, keepdim=True)).sort(1).values
    expected = float((0.9 * kept[:, 0] + 0.1 * kept[:, 1]).median())
    assert unseen_level((p + 1e-12).log(), [0]) == pytest.approx(min(expected, 0.01), rel=1e-4)
    assert 0.0002 < unseen_level((p[:2] + 1e-12).log(), [0]) < 0.01


def test_a_serious_candidate_is_not_taken_for_a_class_that_is_out_of_the_question():
    """Of two retained classes the less likely one may have a third: the forgotten classes get 1 % together at most."""
    assert unseen_level(torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]).log(), [0]) == 0.01
    assert unseen_level(torch.zeros(5, 6), [0, 3]) == 0.005


def test_only_the_forgotten_rows_of_the_head_move(case):
    classifier, layers, head, forget, proxies = setting(case)
    if head is None:
        pytest.skip("no layer with one output a label")
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    logits = classifier.predict(proxies)
    fit_unseen_rows(classifier, layers[head], forget, proxies, [1, 2], [1, 2])
    kept = [k for k in range(classifier.num_labels) if k not in (1, 2)]
    assert torch.equal(classifier.predict(proxies)[:, kept], logits[:, kept]), "retained logits, to the bit"
    for name, value in classifier.model.state_dict().items():
        if name != f"{head}.weight":
            assert torch.equal(value, before[name]), name
    moved = (layers[head].matrix(layers[head].weight) - layers[head].matrix(before[f"{head}.weight"])).flatten(0, 1)
    assert moved[kept].eq(0).all() and (moved[[1, 2]].abs().sum(1) > 0).all()


def test_the_forgotten_classes_become_as_unlikely_on_forget_images_as_on_proxies(case):
    classifier, layers, head, forget, proxies = setting(case)
    if head is None:
        pytest.skip("no layer with one output a label")
    level = fit_unseen_rows(classifier, layers[head], forget, proxies, [1], [1])
    logits = classifier.predict(torch.cat([forget, proxies])).double()
    kept = [k for k in range(classifier.num_labels) if k != 1]
    error = logits[:, 1] - logits[:, kept].logsumexp(1) - torch.logit(torch.tensor(level, dtype=torch.float64))
    assert abs(float(error[: len(forget)].mean() + error[len(forget) :].mean()) / 2) < 1.0, "nats, at most the ridge's"
    assert 0 < level < 1 / len(kept)


def test_the_row_is_the_ridge_regressions():
    classifier = two_layer_classifier(width=6, num_labels=4)
    forget, proxies = torch.rand(12, 1, 2, 2), torch.rand(20, 1, 2, 2)
    layers = constrained_layers(classifier.model, lambda: classifier(forget.double()))
    name = head_name(layers, 4)
    layer = layers[name]
    with head_inputs(layer) as inputs:
        logits = torch.cat([classifier.predict(forget), classifier.predict(proxies)]).double()
    x, bias = torch.cat(inputs).double(), layer.module.bias
    offset = 0.0 if bias is None else float(bias.detach()[1])
    level = fit_unseen_rows(classifier, layer, forget, proxies, [1], [1])
    y = logits[:, [0, 2, 3]].logsumexp(1) + torch.logit(torch.tensor(level, dtype=torch.float64)) - offset
    share = torch.cat([torch.full((12,), 0.5 / 12), torch.full((20,), 0.5 / 20)]).double()
    w = layer.weight[1].detach().double().requires_grad_()
    loss = (share * (x @ w - y) ** 2).sum() + RIDGE * (x.square().sum(1) * share).sum() / x.shape[1] * w.square().sum()
    gradient = torch.autograd.grad(loss, w)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)


class TwoHeads(nn.Module):
    """Logits that are the mean of two heads, as in a distilled DeiT."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, pixel_values):
        x = pixel_values.flatten(1)
        return (self.first(x) + self.second(x)) / 2


def test_a_second_head_that_shares_the_logits_is_allowed_for():
    classifier = two_layer_classifier(width=6, num_labels=5, dtype=torch.float32)
    network = TwoHeads()
    classifier.model.layers = network
    forget, proxies = torch.rand(30, 1, 2, 2), torch.rand(50, 1, 2, 2)
    layers = constrained_layers(classifier.model, lambda: classifier(forget))
    level = fit_unseen_rows(classifier, layers[head_name(layers, 5)], forget, proxies, [3], [3])
    p = classifier.predict(torch.cat([forget, proxies])).softmax(1)[:, 3].log()
    assert abs(float(p.mean()) - torch.tensor(level).log()) < 0.5
