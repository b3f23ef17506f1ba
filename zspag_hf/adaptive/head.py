"""The head as in a model that never saw the forgotten classes: retained rows by a convex fit, forgotten rows low.

A model trained without a class pushes that class's logit down on every image alike: on CIFAR-10 and on digits retrained
models give it one and the same small probability on forgotten and on other images (measured: log-probability -9.4, -9.5
and -6.7, -7.7, standard deviation 1), through a row no longer than its neighbours'. An unlearned row that only avoids
the forget images points away from them: one step of fine-tuning turns it round.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel.processes import my_batches, summed
from ..pipeline.classifier import BATCH, PixelClassifier
from ..pipeline.layers import Layer, input_hooks
from ..pipeline.pseudo_labels import Ids, retained_mask

MOST = 0.01  # probability of all forgotten classes together
PROBED_IMAGES = 64  # on which it is seen how the head's output enters the logits
PROXIES = 10.0  # weight of the proxies' answers beside the targets: at 1 the fit pays for targets with boundary proxies
RIDGE = 1e-3  # on the change of the retained rows, in units of the forget features' mean length
ITERATIONS, HALVINGS = 100, 12
LEAST = 1e-4  # probability: retrained models give a class that they never saw e^-6 to e^-13 on its images
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


class CachedHead:
    """What a head gets and gives on forget images and on proxies, cached: fits need no more passes.

    Args:
        layer: the head. forget, proxies: pixels ``(N, channels, H, W)`` and ``(P, channels, H, W)``.

    Attributes:
        gain: by how much a logit moves with the head's output: 1, or a half where two heads are averaged.
    """

    def __init__(self, classifier: PixelClassifier, layer: Layer, forget: Tensor, proxies: Tensor):
        self.classifier, self.layer = classifier, layer
        self.rows = layer.matrix(layer.weight.detach()).flatten(0, 1)  # a view: writing here changes the head
        self.forget_logits, self.forget = predict_with_inputs(classifier, layer, forget)
        self.proxy_logits, self.proxies = predict_with_inputs(classifier, layer, proxies)
        few = slice(0, PROBED_IMAGES)
        x = self.forget[few]
        step = (x.mean(0) / x.mean(0).square().sum()).to(self.rows)
        kept = self.rows[0].clone()
        self.rows[0] += step
        change = (classifier.predict_shared(forget[few]) - self.forget_logits[few])[:, 0]
        self.rows[0] = kept
        self.gain = float(change.mean() / (x @ step.cpu()).mean())

    def move(self, ids: Tensor | list[int], change: Tensor) -> None:
        """Add ``(n, d_in)`` to some rows, and what follows to the cached logits."""
        self.rows[ids] += change.to(self.rows)
        self.forget_logits[:, ids] += self.gain * self.forget @ change.T
        self.proxy_logits[:, ids] += self.gain * self.proxies @ change.T


def fit_retained_rows(head: CachedHead, targets: Tensor, answers: Tensor, forget_ids: Ids) -> None:
    """Move the retained rows so that forget images get their targets and proxies keep their answers.

    min over dW of CE(q, softmax over retained classes) on the forget images + PROXIES x KL(original || new) on the
    proxies + RIDGE |dW|^2, dW in units of the mean length of a forget feature: convex, by L-BFGS on cached features.

    Args:
        targets: ``(N, C)``. answers: ``(P, C)`` the original's outputs on the proxies; both without forgotten classes.
    """
    keep = retained_mask(len(head.rows), forget_ids)
    length = float(head.forget.square().sum(1).mean().sqrt())
    x, others = head.gain * head.forget / length, head.gain * head.proxies / length
    z, theirs = head.forget_logits[:, keep], head.proxy_logits[:, keep]
    q, kept = targets[:, keep], answers[:, keep]
    change = torch.zeros(int(keep.sum()), x.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([change], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        learned = F.cross_entropy(z + x @ change.T, q)
        now = (theirs + others @ change.T).log_softmax(1)
        moved = F.kl_div(now, kept, reduction="batchmean")
        total = learned + PROXIES * moved + RIDGE * change.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    head.move(keep.nonzero().squeeze(1), change.detach() / length)


def write_never_seen_rows(head: CachedHead, class_ids: Ids, forget_ids: Ids) -> float:
    """Write the forgotten classes' rows as training on the other classes would; on a first request every bias stays.

    A class that is never seen is pushed down on every image alike: in nine retrained models its row is no longer than
    its neighbours' and has a cosine of -.6 to -.8 with the mean feature. A row that only avoids the forget images is
    turned round by one step of fine-tuning. So the direction is the one of least mean softplus(z_u - logsumexp of the
    retained logits), over forget images and proxies, each half; its length the least at which the mean of
    log p_u on the forget images reaches that of :func:`unseen_level`, which is returned, at most
    the median length of the retained rows. The rows of earlier requests stay.

    Args:
        class_ids: the classes of this request. forget_ids: those and the classes of earlier requests.
    """
    ids, keep = list(class_ids), retained_mask(len(head.rows), forget_ids)
    level = max(unseen_level(head.proxy_logits, forget_ids), LEAST / len(ids))
    most = float(head.rows[keep].norm(dim=1).median())
    head.move(ids, -head.rows[ids].cpu())
    x = head.gain * torch.cat([head.forget, head.proxies])
    logits = torch.cat([head.forget_logits, head.proxy_logits])
    n, others = len(head.forget), len(head.proxies)
    share = torch.cat([torch.full((n,), 0.5 / n), torch.full((others,), 0.5 / others)])
    against = logits[:, keep].logsumexp(1)
    start = -F.normalize(head.proxies.mean(0), dim=0)
    for u in ids:
        margin = logits[:, u] - against
        low, high = 0.0, most
        for _ in range(HALVINGS):
            length = (low + high) / 2
            row = length * lowest_direction(x, margin, share, start, length)
            enough = float((x[:n] @ row + margin[:n]).mean()) <= math.log(level)
            low, high = (low, length) if enough else (length, high)
        head.move([u], high * lowest_direction(x, margin, share, start, high)[None])
    if len(forget_ids) > len(ids):
        lower_biases(head, forget_ids, level)
    return level


@torch.no_grad()
def lower_biases(head: CachedHead, forget_ids: Ids, level: float) -> None:
    """After earlier requests: take each forgotten class's bias down until no forget image and no proxy gives it more
    than ``level``, where the head has biases.

    The earlier requests' images are gone, and where their features lie now is not known: an earlier row can be high on
    today's images, and today's row on theirs. What is low on every image alike is a bias.
    """
    bias = head.layer.module.bias
    if not isinstance(bias, Tensor):
        return
    logits = torch.cat([head.forget_logits, head.proxy_logits])
    against = logits[:, retained_mask(len(head.rows), forget_ids)].logsumexp(1)
    for u in forget_ids:
        excess = float((logits[:, u] - against).max()) - math.log(level)
        bias[u] -= max(excess, 0.0) / head.gain


def lowest_direction(x: Tensor, margin: Tensor, share: Tensor, start: Tensor, length: float) -> Tensor:
    """The unit vector ``(D,)`` of least log of the weighted mean softplus(length x . v + margin), from ``start``."""
    v = start.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([v], max_iter=ITERATIONS // 2, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        total = (share * F.softplus(length * (x @ F.normalize(v, dim=0)) + margin)).sum().log()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return F.normalize(v.detach(), dim=0)
