"""The forgotten classes' rows of the head, as in a model that never saw those classes.

A model trained without a class pushes that class's logit down on every image alike: on CIFAR-10 and on digits retrained
models give it one and the same small probability on forgotten and on other images (measured: log-probability -9.4, -9.5
and -6.7, -7.7, standard deviation 1), through a row no longer than its neighbours'. An unlearned row that only avoids
the forget images points away from them: one step of fine-tuning turns it round. So the rows are fitted in closed form.
They touch no retained logit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..parallel.processes import my_batches, summed
from ..pipeline.classifier import BATCH, PixelClassifier
from ..pipeline.layers import Layer, input_hooks
from ..pipeline.pseudo_labels import Ids, retained_mask

RIDGE = 0.1  # of the mean eigenvalue: rows as long as the retained classes' on digits, CIFAR-10 and a MobileNet
MOST = 0.01  # probability of all forgotten classes together
PROBED_IMAGES = 64  # on which it is seen how the head's output enters the logits
LEAST_LIKELY = 0.05  # quantile over retained classes that counts as "surely not this class"


@contextlib.contextmanager
def head_inputs(layer: Layer) -> Iterator[list[Tensor]]:
    """Collect the head's input rows, ``(n, d_in)`` a batch, the mean over positions where it has several."""
    batches: list[Tensor] = []

    def look(_name: str, x: Tensor) -> None:
        rows = layer.inputs(x)[0]
        batches.append(rows.unflatten(0, (len(x), -1)).mean(1).float())  # float32 under autocast too

    with input_hooks([(layer.name, layer.module)], look):
        yield batches


@torch.no_grad()
def predict_with_inputs(classifier: PixelClassifier, layer: Layer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(N, C)`` and the head's inputs ``(N, d_in)`` on the CPU; processes share the batches."""
    logits, inputs = torch.zeros(len(pixels), classifier.num_labels), torch.zeros(len(pixels), layer.d_in)
    for rows in my_batches(len(pixels), BATCH):
        with head_inputs(layer) as batches:
            logits[rows] = classifier.predict(pixels[rows])
        inputs[rows] = torch.cat(batches).cpu()
    return summed(logits), summed(inputs)


def unseen_level(logits: Tensor, forget_ids: Ids) -> float:
    """The probability that the model gives a class that an image surely is not, from logits ``(P, C)`` on proxies: the
    median over images of the 5 % quantile over retained classes, at most ``MOST`` for all forgotten classes together
    (of two or three retained classes the least likely one is often a serious candidate)."""
    p = logits[:, retained_mask(logits.shape[1], forget_ids)].double().softmax(1)
    return min(float(p.quantile(LEAST_LIKELY, dim=1).median()), MOST / len(forget_ids))


@torch.no_grad()
def fit_unseen_rows(
    classifier: PixelClassifier, layer: Layer, forget: Tensor, proxies: Tensor, class_ids: Ids, forget_ids: Ids
) -> float:
    """Write the forgotten classes' rows of the head; every other row stays, and on a first request every bias.

    Ridge regression to the row itself, not to a change of it: minimise the mean square of z_u(x) - t(x), over forget
    images and over proxies, each half, plus RIDGE x (mean eigenvalue) x |w|^2, where z_u is the forgotten logit and
    t(x) = logsumexp over retained logits + logit(level) is the logit that gives the class the probability ``level``,
    that of :func:`unseen_level` on the proxies, which is returned.

    After earlier requests, whose images are gone, two things are added. The earlier rows are fitted again, as a change
    of themselves: fitted on their own images, they say anything on today's, which lose their own class to the next
    likely one. And of each forgotten logit the mean part is taken off the bias and not the row, where the head has one:
    a row that is low on today's images alone is high on those that point the other way. On drawn faces the third
    person's row took every picture of the second without it, though ``acc_ut`` was 0.

    Args:
        layer: the head. forget, proxies: pixels ``(N, channels, H, W)``.
        class_ids: the classes of this request. forget_ids: those and the classes of earlier requests.
    """
    ids, rows, bias = list(forget_ids), layer.matrix(layer.weight).flatten(0, 1), layer.module.bias
    pixels = (forget, proxies)
    keep = retained_mask(len(rows), forget_ids)
    rows[list(class_ids)] = 0  # their logits are then the bias, or a second head's
    start = rows[ids].clone()
    both = [predict_with_inputs(classifier, layer, part) for part in pixels]
    rest, x = (torch.cat(column).double() for column in zip(*both, strict=True))
    level = unseen_level(rest[len(forget) :], forget_ids)
    direction = (x.mean(0) / x.mean(0).square().sum()).to(rows)
    rows[ids] = start + direction
    few = slice(0, PROBED_IMAGES)
    probe = classifier.predict_shared(forget[few]).double()[:, ids] - rest[: len(forget)][few][:, ids]
    # 1 for a single head; two heads that are averaged pass on half
    gain = float(probe[:, 0].mean() / (x[: len(forget)][few] @ direction.double().cpu()).mean())
    share = torch.cat([torch.full((len(part),), 0.5 / len(part)) for part in pixels]).double()
    target = rest[:, keep].logsumexp(1) + torch.logit(torch.tensor(level)).double()
    a = gain * x
    weighted = (a * share[:, None]).T
    gram = weighted @ a
    ridge = RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    for column, row in enumerate(ids):
        y = target - rest[:, row]
        if len(ids) > len(class_ids) and isinstance(bias, Tensor):
            constant = float(share @ y)
            bias[row] += constant / gain
            y = y - constant
        rows[row] = start[column] + torch.linalg.solve(gram + ridge, weighted @ y).to(rows)
    return level
