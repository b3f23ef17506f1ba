"""Hand-made inputs for the losses of methods, and runs that read retained data."""

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from cases import linear_classifier
from tiny import images, tiny_model, trainer

from zspag_hf import METHODS

STAYING = [0, 1, 3, 4]  # of the tiny trainer's five classes, which forgets 2


def stand_in(num_labels=3, retained=None, epoch=0.0, epochs=4):
    """What a loss reads of a run, over a linear model of 2x2 grey images."""
    classifier = linear_classifier(num_labels=num_labels, size=2, gain=2.0)
    state = SimpleNamespace(epoch=epoch, num_train_epochs=epochs)
    return SimpleNamespace(classifier=classifier, state=state, retained=retained)


def rows(labels, num_labels=3, seed=0):
    """Random images ``(N, 1, 2, 2)``, and their labels as targets ``(N, C)``."""
    pixels = torch.rand(len(labels), 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return pixels, F.one_hot(torch.tensor(labels), num_labels).float()


def even(count):
    """The weights of a whole batch."""
    return torch.full((count,), 1 / count)


def cross_entropy_gradient(classifier, pixels, targets):
    """Mean over rows of (p - y) x^T, the gradient of the linear model's cross-entropy by its weight."""
    x, linear = pixels.flatten(1), classifier.model.layers[1]
    p = (x @ linear.weight.T + linear.bias).softmax(1)
    return ((p - targets).T @ x / len(x)).detach()


def gradient(loss, classifier):
    """Of a loss, or the sum of several, by the linear model's weight."""
    return torch.autograd.grad(sum(loss) if isinstance(loss, list) else loss, classifier.model.layers[1].weight)[0]


def retained_run(folder, method, per_class=6, **options):
    """A trainer over 12 images of class 2, beside ``per_class`` of each class that stays; and a copy of its model."""
    model, retain = tiny_model(), images(STAYING * per_class, seed=2)
    form = {} if METHODS[method].needs_retain else {"with_retain": True}
    return trainer(folder, model=model, method=method, retain=retain, **(form | options)), copy.deepcopy(model)


def one_step(job, start, losses, rate):
    """Whether each parameter went one step of plain SGD from ``start``; ``losses`` takes a function from uint8 pixels
    to logits."""
    start.requires_grad_(True)
    losses(lambda pixels: start(pixel_values=job.run.classifier.normalize(pixels.float() / 255)).logits).backward()
    moved = dict(job.model.named_parameters())
    for name, parameter in start.named_parameters():
        if parameter.grad is not None:
            expected = parameter.detach() - rate * parameter.grad
            torch.testing.assert_close(
                moved[name].detach(), expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m
            )
