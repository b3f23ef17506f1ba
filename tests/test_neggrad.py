"""NegGrad and NegGrad+: their steps, and the bound that keeps both from running away."""

import math

import pytest
import torch
import torch.nn.functional as F
from retained import cross_entropy_gradient, even, gradient, one_step, retained_run, rows, stand_in
from tiny import config, trainer

from zspag_hf.methods.neggrad import NegGrad


def losses(stand, inputs):
    method = NegGrad()
    return [method.compute_loss(stand, stand.classifier.model, part) for part in method.parts(inputs)]


def beneath(stand, pixels, targets):
    """Which rows have a cross-entropy below log C."""
    return F.cross_entropy(stand.classifier.predict(pixels), targets, reduction="none") < math.log(targets.shape[1])


def believed(stand, seed):
    """Rows with the labels that the model gives them."""
    pixels, _ = rows([0] * 4, seed=seed)
    return pixels, F.one_hot(stand.classifier.predict(pixels).argmax(1), 3).float()


def test_a_zero_shot_step_climbs_the_cross_entropy():
    stand = stand_in()
    pixels, targets = believed(stand, 0)
    assert beneath(stand, pixels, targets).all()
    found = gradient(losses(stand, {"pixels": pixels, "targets": targets, "weights": even(4)}), stand.classifier)
    expected = -cross_entropy_gradient(stand.classifier, pixels, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_image_beyond_an_even_guess_has_no_part_in_it():
    stand = stand_in()
    pixels, targets = believed(stand, 0)
    targets[1:] = targets[1:].roll(1, 1)  # wrong labels
    below = beneath(stand, pixels, targets)
    assert below[0] and not below[1:].all()
    loss = losses(stand, {"pixels": pixels, "targets": targets, "weights": even(4)})
    expected = -cross_entropy_gradient(stand.classifier, pixels[below], targets[below]) * below.sum() / 4
    torch.testing.assert_close(gradient(loss, stand.classifier), expected, rtol=1e-5, atol=1e-6)


def test_a_step_with_retained_images_is_alpha_of_theirs_less_the_rest_of_the_others():
    stand = stand_in(retained="there")
    pixels, targets = rows([2, 0, 1, 1], seed=1)
    forgotten, labels = believed(stand, 2)
    inputs = {"pixels": pixels, "targets": targets, "weights": even(4)}
    found = losses(stand, inputs | {"proxy_pixels": forgotten, "proxy_targets": labels})
    down, up = (cross_entropy_gradient(stand.classifier, *each) for each in ((pixels, targets), (forgotten, labels)))
    torch.testing.assert_close(gradient(found, stand.classifier), 0.95 * down - 0.05 * up, rtol=1e-5, atol=1e-6)


def test_a_run_pairs_every_retained_image_and_takes_that_step(tmp_path):
    options = {"max_steps": 1, "per_device_train_batch_size": 24, "learning_rate": 0.1}
    job, start = retained_run(tmp_path, "neggrad", **options)
    job.train()
    pairs = job.train_dataset.pairs[torch.arange(24) % len(job.train_dataset.pairs)]
    assert torch.bincount(pairs).tolist() == [2] * 12, "forget images are gone through again and again"
    forget, retain = job.run.forget, job.run.retained

    def loss(model):
        gone = F.cross_entropy(model(forget.pixels), forget.labels, reduction="none").clamp(max=math.log(5)).mean()
        return 0.95 * F.cross_entropy(model(retain.pixels), retain.labels) - 0.05 * gone

    one_step(job, start, loss, 0.1)


@pytest.mark.slow
def test_it_stops_beyond_an_even_guess(tmp_path):
    ends = []
    for epochs in (60, 90):
        job = trainer(tmp_path / str(epochs), method="neggrad", learning_rate=0.05, num_train_epochs=epochs)
        job.train()
        logits, labels = job.run.classifier.predict(job.run.forget.pixels), job.run.forget.labels
        loss = F.cross_entropy(logits, labels, reduction="none")
        assert loss.min() > math.log(5)
        ends.append(job.model.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


@pytest.mark.slow
def test_it_stays_finite_at_a_rate_far_too_high(tmp_path):
    job = trainer(tmp_path, "resnet", method="neggrad", learning_rate=1.0, num_train_epochs=60)
    job.train()
    assert all(torch.isfinite(value).all() for value in job.model.state_dict().values())


def test_the_published_rates_go_by_the_number_of_labels(tmp_path):
    made = [NegGrad().completed(config(tmp_path), labels) for labels in (10, 100)]
    assert [method.learning_rate for method, _ in made] == [args.learning_rate for _, args in made] == [5e-5, 8e-5]
    assert made[0][0].num_train_epochs == 30
