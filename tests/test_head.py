"""The head as in a model that never saw a class: what each fit promises, and that it moves nothing else."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import two_layer_classifier
from sweep import sweep
from torch import nn

from zspag_hf.adaptive.head import CachedHead, fit_retained_rows, unseen_level, write_never_seen_rows
from zspag_hf.pipeline.layers import constrained_layers, head_name


@pytest.fixture(params=sweep("vit", "resnet"))
def case(request):
    return request.param


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


def masked(logits):
    """Outputs without classes 1 and 2."""
    return logits.index_fill(1, torch.tensor([1, 2]), -torch.inf).softmax(1)


class TestHead:
    def cached(self, case):
        classifier, pixels = case.classifier(torch.float32), case.pixels(40, torch.float32)
        layers = constrained_layers(classifier.model.eval(), lambda: classifier(pixels[:2]))
        name = head_name(layers, classifier.num_labels)
        if name is None:
            pytest.skip("no layer with one output a label")
        forget, proxies = pixels[:16], pixels[16:]
        head = CachedHead(classifier, layers[name], forget, proxies)
        return SimpleNamespace(classifier=classifier, head=head, forget=forget, proxies=proxies, name=name)

    def test_cached_logits_are_the_model_s_after_both_fits(self, case):
        s = self.cached(case)
        answers = masked(s.classifier.predict(s.proxies))
        targets = torch.rand(16, s.classifier.num_labels)
        targets[:, [1, 2]] = 0
        fit_retained_rows(s.head, targets / targets.sum(1, keepdim=True), answers, [1, 2])
        write_never_seen_rows(s.head, [1, 2], [1, 2])
        torch.testing.assert_close(s.classifier.predict(s.forget), s.head.forget_logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(s.classifier.predict(s.proxies), s.head.proxy_logits, atol=1e-3, rtol=1e-3)

    def test_the_fit_goes_towards_the_targets_and_moves_nothing_but_retained_rows(self, case):
        s = self.cached(case)
        before = {name: value.clone() for name, value in s.classifier.model.state_dict().items()}
        keep = [k for k in range(s.classifier.num_labels) if k not in (1, 2)]
        targets = torch.zeros(16, s.classifier.num_labels)
        targets[:, keep[0]] = 1.0

        def loss():
            return float(F.cross_entropy(s.classifier.predict(s.forget)[:, keep], targets[:, keep]))

        first = loss()
        fit_retained_rows(s.head, targets, masked(s.classifier.predict(s.proxies)), [1, 2])
        assert loss() < first
        for name, value in s.classifier.model.state_dict().items():
            assert torch.equal(value, before[name]) == (name != f"{s.name}.weight"), name
        rows = s.head.layer.matrix(before[f"{s.name}.weight"]).flatten(0, 1)
        assert torch.equal(s.head.rows[[1, 2]], rows[[1, 2]])

    def test_forgotten_rows_are_low_and_no_longer_than_the_retained(self, case):
        s = self.cached(case)
        retained = s.classifier.predict(s.proxies)
        level = write_never_seen_rows(s.head, [1, 2], [1, 2])
        keep = [k for k in range(s.classifier.num_labels) if k not in (1, 2)]
        lengths = s.head.rows.norm(dim=1)
        assert (lengths[[1, 2]] <= lengths[keep].median() * (1 + 1e-5)).all()
        assert torch.equal(s.classifier.predict(s.proxies)[:, keep], retained[:, keep]), "to the bit"
        assert 0 < level <= 0.005


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
    head = CachedHead(classifier, layers[head_name(layers, 5)], forget, proxies)
    assert head.gain == pytest.approx(0.5, abs=1e-4)
    write_never_seen_rows(head, [3], [3])
    torch.testing.assert_close(classifier.predict(forget), head.forget_logits, atol=1e-4, rtol=1e-4)
