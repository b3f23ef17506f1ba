"""OU@eps (arXiv 2506.01318): how far did the answers move beside the forget images, where nothing was to go?"""

import numpy as np

from zspag_hf.metrics.rows import NEIGHBOURS, SPLIT, VECTOR, Metric, jensen_shannon, log_probs, mean, pick


class OverUnlearning(Metric):
    """over_unlearning: Jensen-Shannon divergence between the masked original's answers and the model's on neighbours of
    forget images (untargeted PGD on the original model, eps .03, 3 steps of .01), mean over images, nats, at most .693.
    0: as the masked original answers. A measure of change, not of fidelity: retrained models change too, and right is
    what they get.

    Inputs: predictions (N, C) and masked (N, C): logits of the model and of the original with the forgotten classes at
    -inf; splits (N,), of which neighbours is read. None without such rows.
    """

    columns = {"predictions": VECTOR, "masked": VECTOR, "splits": SPLIT}

    def _compute(self, predictions, masked, splits, **_):
        asked = pick(splits, NEIGHBOURS)
        if not asked.any():
            return {"over_unlearning": None}
        mine, theirs = (log_probs(np.asarray(rows)[asked]) for rows in (predictions, masked))
        return {"over_unlearning": mean(jensen_shannon(mine, theirs))}
