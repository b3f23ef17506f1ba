import pytest
import torch
import torch.nn.functional as F
from tiny import trainer

from zspag_hf.methods import spotter
from zspag_hf.methods.spotter import likeness
from zspag_hf.pipeline.neighbours import EPS, STEPS, neighbours
from zspag_hf.pipeline.pseudo_labels import pseudo_labels

EACH = torch.ones(6, dtype=torch.float64)


@pytest.fixture
def features():
    return torch.randn(6, 4, dtype=torch.float64, requires_grad=True)


def one_hot(*labels):
    return F.one_hot(torch.tensor(labels), 5).double()


class TestLikeness:
    def test_is_the_mean_over_pairs_of_one_class(self, features):
        labels = [2, 2, 0, 2, 0, 1]  # of class 1 there is no pair
        pairs = [
            F.cosine_similarity(features[i], features[j], dim=0)
            for i in range(6)
            for j in range(i)
            if labels[i] == labels[j]
        ]
        assert len(pairs) == 4
        torch.testing.assert_close(likeness(features, one_hot(*labels), EACH), torch.stack(pairs).mean())

    def test_ends_at_one_for_one_direction_and_below_zero_for_scattered_ones(self):
        same = likeness(torch.rand(6, 1).double() + 0.1, one_hot(*[3] * 6), EACH)
        assert float(same) == pytest.approx(1)
        around = torch.eye(3, dtype=torch.float64)
        assert float(likeness(torch.cat([around, -around]), one_hot(*[3] * 6), EACH)) == pytest.approx(-1 / 5)

    def test_a_batch_without_a_pair_has_none(self, features):
        value = likeness(features[:2], one_hot(0, 1), EACH[:2])
        value.backward()
        assert value == 0 and features.grad.eq(0).all()

    def test_a_row_that_stands_in_for_none_does_not_count(self, features):
        expected = likeness(features[:5], one_hot(2, 2, 0, 2, 0), EACH[:5])
        weights = torch.tensor([1, 1, 1, 1, 1, 0.0]).double()
        torch.testing.assert_close(likeness(features, one_hot(2, 2, 0, 2, 0, 2), weights), expected)

    def test_processes_that_share_a_batch_have_its_value_and_in_the_mean_its_gradient(self, features, monkeypatch):
        labels = one_hot(2, 2, 0, 2, 0, 2)
        whole = likeness(features, labels, EACH)
        (expected,) = torch.autograd.grad(whole, features)
        unit = F.normalize(features.detach(), dim=1)
        totals = {5: labels.sum(0), 20: labels.T @ unit}  # by size: what the processes' parts add up to
        monkeypatch.setattr(spotter, "summed", lambda part: totals[part.numel()])
        monkeypatch.setattr(spotter, "rank_and_size", lambda: (0, 2))
        mean = 0
        for rows in ([0, 2, 4], [1, 3, 5]):
            value = likeness(features[rows], labels[rows], 2 * EACH[rows])
            torch.testing.assert_close(value, whole)
            mean = mean + torch.autograd.grad(value, features)[0] / 2
        torch.testing.assert_close(mean, expected)


def test_neighbours_lie_around_the_images_away_from_their_labels(tmp_path):
    classifier = trainer(tmp_path, method="spotter").run.classifier
    pixels = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    labels = classifier.predict(pixels).argmax(1)
    around, crossed = neighbours(classifier, pixels, labels)
    far = (around - pixels / 255).abs()
    assert far.max() <= EPS + 1e-6 and far.mean() > EPS / 2 and around.min() >= 0 and around.max() <= 1
    before, after = (classifier.predict(x).log_softmax(1).gather(1, labels[:, None]) for x in (pixels, around))
    assert (after < before).all()
    assert torch.equal(crossed, classifier.predict(around).argmax(1) != labels)
    assert STEPS == 3 and EPS == 0.03


@pytest.mark.parametrize("options", [{}, {"share": 1.0, "dispersion": 0.0}, {"share": 0.25, "dispersion": 3.0}])
def test_the_loss_is_the_sum_of_its_three_terms(tmp_path, options):
    job = trainer(tmp_path, method="spotter", max_steps=1, learning_rate=1e-9, **options)
    losses, real = [], type(job.method).compute_loss
    seen = []

    def watched(self, run, model, inputs):
        loss = real(self, run, model, inputs)
        seen.append({name: value.detach() for name, value in inputs.items()})
        losses.append(float(loss.detach()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(job.method), "compute_loss", watched)
        job.train()
    method, classifier = job.method, job.run.classifier
    kl = []
    for x in (seen[0]["pixels"], seen[1]["proxy_pixels"]):
        logits = classifier.predict(x)
        target = pseudo_labels(logits, [2], None).targets
        kl.append(-(target * logits.log_softmax(1)).sum(1).mean())
    with spotter.head_inputs(job.run.layers[job.run.head]) as features:
        classifier.predict(seen[0]["pixels"])
    unit = F.normalize(features[0], dim=1)
    alike = (unit @ unit.T).fill_diagonal_(0).sum() / (len(unit) * (len(unit) - 1))
    assert losses[0] == pytest.approx(float(method.share * kl[0] + method.dispersion * alike), rel=1e-3)
    assert losses[1] == pytest.approx(float((1 - method.share) * kl[1]), rel=1e-3, abs=1e-7)
    assert job.report.proxies.keys() == {"attack_success_rate"} and job.report.zero_shot


def test_it_scatters_features(tmp_path):
    likes = {}
    for weight in (0.0, 5.0):
        job = trainer(tmp_path / str(weight), method="spotter", dispersion=weight, max_steps=30, learning_rate=0.02)
        job.train()
        with spotter.head_inputs(job.run.layers[job.run.head]) as features:
            job.run.classifier.predict(job.run.forget.pixels)
        labels = F.one_hot(job.run.forget.labels, 5).float()
        likes[weight] = float(likeness(features[0], labels, torch.ones(len(labels))))
    assert likes[5.0] < likes[0.0] - 0.2
