"""Held-out proxies and forget images: the validation set of an adaptive run, and what is read off it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnlearningError
from ..pipeline.classifier import PixelClassifier
from ..pipeline.pseudo_labels import Ids, allowed_mask, retained_mask

NEVER = -1e9  # a logit of probability 0, where -inf would leave 0 x inf


@dataclass(frozen=True)
class Reading:
    """One look at the held-out data.

    Attributes:
        proxy_kl: mean KL(original || now) on held-out proxies over the retained classes, in nats.
        target_js: mean Jensen-Shannon divergence between the outputs on held-out forget images and their targets, nats.
        forget_probability: mean probability of the forgotten classes on held-out forget images, in [0, 1].
        proxy_forget_probability: the same on held-out proxies: a head whose forgotten rows overshoot shows here.
        forget_rate: share of held-out forget images still given a forgotten label, in [0, 1].
    """

    proxy_kl: float
    target_js: float
    forget_probability: float
    proxy_forget_probability: float
    forget_rate: float


class HeldOut:
    """The validation set. Processes share its batches.

    Args:
        proxies: ``(P, channels, H, W)``, made from held-out forget images; their outputs as they are now are to stay.
        forget: ``(N, channels, H, W)`` held-out forget images. targets: ``(N, C)`` their target distributions.
        wrong: ``(P,)`` a label whose probability on a proxy may move, -1 for none; None where none may.

    Attributes:
        first: the reading of the model as it is when this is made, the original.
    """

    def __init__(
        self,
        classifier: PixelClassifier,
        proxies: Tensor,
        forget: Tensor,
        targets: Tensor,
        forget_ids: Ids,
        wrong: Tensor | None = None,
    ):
        self.classifier, self.proxies, self.forget, self.targets = classifier, proxies, forget, targets
        self.forget_ids = forget_ids
        self.gone = ~retained_mask(classifier.num_labels, forget_ids)
        allowed = allowed_mask(classifier.num_labels, forget_ids, wrong)
        self.ignored = None if wrong is None else ~allowed[:, ~self.gone]
        logits = classifier.predict_shared(proxies)
        self.reference = self.retained_log_probs(logits)
        self.first = self.reading(logits, classifier.predict_shared(forget))

    def retained_log_probs(self, logits: Tensor) -> Tensor:
        """``(P, C_retained)`` log-probabilities over the retained classes."""
        kept = logits[:, ~self.gone].double()
        return (kept if self.ignored is None else kept.masked_fill(self.ignored, NEVER)).log_softmax(1)

    def proxy_kl(self, logits: Tensor | None = None) -> float:
        """Mean KL(original || now) on the held-out proxies over the retained classes, in nats."""
        logits = self.classifier.predict_shared(self.proxies) if logits is None else logits
        now = self.retained_log_probs(logits)
        return float(F.kl_div(now, self.reference, log_target=True, reduction="batchmean"))  # what eq. 6 holds small

    def read(self) -> Reading:
        """Of the model as it is now."""
        return self.reading(*(self.classifier.predict_shared(part) for part in (self.proxies, self.forget)))

    def reading(self, proxies: Tensor, forget: Tensor) -> Reading:
        """From the logits on held-out proxies and forget images."""
        p, beside = (logits.double().softmax(1) for logits in (forget, proxies))
        return Reading(
            self.proxy_kl(proxies),
            float(jensen_shannon(p, self.targets.double()).mean()),
            float(p[:, self.gone].sum(1).mean()),
            float(beside[:, self.gone].sum(1).mean()),
            float(self.gone[forget.argmax(1)].double().mean()),
        )


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each row, in nats: 0 for equal rows, ln 2 for disjoint ones."""
    middle = ((p + q) / 2).clamp_min(1e-300).log()
    one, other = (torch.xlogy(x, x).sum(1) - (x * middle).sum(1) for x in (p, q))
    return 0.5 * (one + other)


def split(count: int, held_out_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to judge by, each in [0, count).

    Raises:
        UnlearningError: too few images for both parts.
    """
    held = round(count * held_out_share)
    if held < 1 or held >= count:
        raise UnlearningError(
            f"holdout_share={held_out_share} leaves {count} forget images too few to train on and to judge by: pass"
            " forget_views=48, which takes 48 random crops of each image, or give method='zspag_paper'."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values
