"""The one table that every metric reads: a row an image, with the split that it belongs to.

    predictions (N, C)  logits of the model under test; -inf for a class that it can not give
    references  (N,)    label ids
    splits      (N,)    "forget", "retain", "test_forgotten", "test_retained" or "views"

and, for metrics that compare, ``retrained`` (N, C): logits of a model retrained without the forgotten classes. Metrics
that share this table can be computed together with ``evaluate.combine``; each ignores the columns of the others.
"""

import datasets
import evaluate
import numpy as np
from scipy.special import log_softmax

FORGET = "forget"  # images of the request: members of the original's training set
RETAIN = "retain"  # training images of retained classes
TEST_FORGOTTEN = "test_forgotten"  # held-out images of forgotten classes
TEST_RETAINED = "test_retained"  # held-out images of retained classes
VIEWS = "views"  # random crops of the forget images that nothing was trained on
SPLITS = (FORGET, RETAIN, TEST_FORGOTTEN, TEST_RETAINED, VIEWS)
LOG_FLOOR = -50.0  # least log-probability, in nats: keeps a masked class comparable

LOGITS = datasets.Sequence(datasets.Value("float32"))
COLUMNS = {"predictions": LOGITS, "references": datasets.Value("int64"), "splits": datasets.Value("string")}
CITATION = "The sources stand in zspag_hf.metrics.METRICS, one line a score."


def info(description: str, inputs: str, **columns) -> evaluate.MetricInfo:
    """A MetricInfo over the common table and further columns."""
    return evaluate.MetricInfo(
        description=description,
        citation=CITATION,
        inputs_description=inputs,
        features=datasets.Features(COLUMNS | columns),
    )


def log_probs(logits) -> np.ndarray:
    """Log-probabilities ``(N, C)`` in float64, none below ``LOG_FLOOR``."""
    return np.maximum(log_softmax(np.asarray(logits, np.float64), axis=1), LOG_FLOOR)


def true_log_probs(logits, labels) -> np.ndarray:
    """log p_y of each row, ``(N,)``."""
    return np.take_along_axis(log_probs(logits), np.asarray(labels)[:, None], 1)[:, 0]


def entropy(logits) -> np.ndarray:
    """Shannon entropy of each row in nats, ``(N,)``."""
    log_p = log_probs(logits)
    return -(np.exp(log_p) * log_p).sum(1)


def modified_entropy(logits, labels) -> np.ndarray:
    """-(1 - p_y) log p_y - sum over k != y of p_k log(1 - p_k), row by row, ``(N,)`` (Song and Mittal 2021).

    Two published codes write log p for log(1 - p) and overwrite whole columns of the batch for the true labels.
    """
    log_p = log_probs(logits)
    p = np.exp(log_p)
    log_not = np.maximum(np.log1p(-np.minimum(p, 1 - 1e-16)), LOG_FLOOR)
    others = np.ones_like(p, bool)
    rows = np.arange(len(p))
    others[rows, labels] = False
    own = -(1 - p[rows, labels]) * log_p[rows, labels]
    return own - np.where(others, p * log_not, 0).sum(1)


def margin(logits, labels) -> np.ndarray:
    """phi = log p_y - log(1 - p_y), stable, within +-50 nats, ``(N,)`` (LiRA, arXiv 2112.03570)."""
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    rows = np.arange(len(log_p))
    own = np.maximum(log_p[rows, labels], LOG_FLOOR)
    others = log_p.copy()
    others[rows, labels] = -np.inf
    rest = np.logaddexp.reduce(others, axis=1)
    return np.clip(own - np.maximum(rest, LOG_FLOOR), LOG_FLOOR, -LOG_FLOOR)


def pick(splits, *wanted) -> np.ndarray:
    """Which rows belong to the wanted splits, ``(N,)`` bool."""
    return np.isin(np.asarray(splits), wanted)


def mean(values) -> float | None:
    """The mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None
