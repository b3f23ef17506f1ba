"""Distance of a model's answers from a retrained model's, on test images of forgotten and of retained classes."""

import numpy as np

from zspag_hf.metrics.rows import (
    TABLE,
    TEST_FORGOTTEN,
    TEST_RETAINED,
    VECTOR,
    Metric,
    jensen_shannon,
    log_probs,
    mean,
    pick,
)


class Divergence(Metric):
    """Means over test images of forgotten (_ut) and of retained classes (_rt), r the retrained model's and u the
    model's probabilities, in nats: kl = KL(r || u), kl_reverse = KL(u || r), js = Jensen-Shannon (at most ln 2 = .693),
    fade = (kl + kl_reverse) / 2 image by image, FADE (arXiv 2510.12981, for generative models) adapted to classifiers,
    where its expectation is a finite sum. tv = half the absolute difference, in [0, 1]; agreement = share of equal
    top-1 answers, in [0, 1]. Log-probabilities are cut at -50 nats.

    Inputs: The common table with splits test_forgotten and test_retained, and retrained (N, C); None over no rows.
    """

    columns = TABLE | {"retrained": VECTOR}

    def _compute(self, predictions, references, splits, retrained, **_):
        log_u, log_r = log_probs(predictions), log_probs(retrained)
        u, r = np.exp(log_u), np.exp(log_r)
        kl, kl_reverse = (r * (log_r - log_u)).sum(1), (u * (log_u - log_r)).sum(1)
        rows = {
            "kl": kl,
            "kl_reverse": kl_reverse,
            "js": jensen_shannon(log_u, log_r),
            "fade": (kl + kl_reverse) / 2,
            "tv": 0.5 * np.abs(u - r).sum(1),
            "agreement": u.argmax(1) == r.argmax(1),
        }
        parts = {"ut": pick(splits, TEST_FORGOTTEN), "rt": pick(splits, TEST_RETAINED)}
        return {f"{name}_{part}": mean(values[of]) for part, of in parts.items() for name, values in rows.items()}
