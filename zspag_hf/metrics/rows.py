"""The one table that every metric reads: a row an image, with the split that it belongs to.

    predictions (N, C)  logits of the model under test; -inf for a class that it can not give
    references  (N,)    label ids
    splits      (N,)    "forget", "retain", "test_forgotten", "test_retained" or "views"

and, for metrics that compare, ``retrained`` (N, C): logits of a model retrained without the forgotten classes. Metrics
that share this table can be computed together with ``evaluate.combine``; each ignores the columns of the others.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

FORGET = "forget"  # images of the request: members of the original's training set
RETAIN = "retain"  # training images of retained classes
TEST_FORGOTTEN = "test_forgotten"  # held-out images of forgotten classes
TEST_RETAINED = "test_retained"  # held-out images of retained classes
VIEWS = "views"  # random crops of the forget images that nothing was trained on
NEIGHBOURS = "neighbours"  # forget images moved a little, see over_unlearning; no images that anybody gave
SPLITS = (FORGET, RETAIN, TEST_FORGOTTEN, TEST_RETAINED, VIEWS)
LOG_FLOOR = -50.0  # least log-probability, in nats: keeps a masked class comparable

VECTOR = datasets.Sequence(datasets.Value("float32"))  # logits, margins, features or a map of one image
LABEL, SPLIT = datasets.Value("int64"), datasets.Value("string")
TABLE = {"predictions": VECTOR, "references": LABEL, "splits": SPLIT}


class Metric(evaluate.Metric, ABC):  # abstract, so that ``evaluate.load`` passes it over
    """A metric over ``columns``; its docstring is its description, in which "Inputs:" opens the last paragraph."""

    columns: ClassVar[dict[str, Any]] = TABLE

    def _info(self) -> evaluate.MetricInfo:
        text, _, inputs = (inspect.getdoc(type(self)) or "").partition("\n\nInputs: ")
        columns = datasets.Features(self.columns)
        source = "The sources stand in zspag_hf.metrics.METRICS, one line a score."
        return evaluate.MetricInfo(description=text, citation=source, inputs_description=inputs, features=columns)

    @classmethod
    def of_arrays(cls, **columns: Any) -> dict[str, Any]:
        """What ``compute`` gives, to the last bit, without Arrow, which makes every number a Python object: 10 s for
        10,000 rows of 700 numbers. Columns as ``compute`` takes them; those of other metrics are passed on."""
        given = {name: exactly(columns[name], feature) for name, feature in cls.columns.items()}
        return cls(keep_in_memory=True)._compute(**columns | given)

    @abstractmethod
    def _compute(self, *args: Any, **columns: Any) -> dict[str, Any]: ...


def exactly(column: ArrayLike, feature: Any) -> np.ndarray:
    """A column as ``np.asarray`` makes it of the list that Arrow gives back: rounded to its type, floats in float64."""
    kind = getattr(feature, "feature", feature).dtype
    cast = np.asarray(column) if kind == "string" else np.asarray(column, kind)
    return cast.astype(np.float64) if cast.dtype.kind == "f" else cast


def log_probs(logits: ArrayLike) -> np.ndarray:
    """Log-probabilities ``(N, C)`` in float64, none below ``LOG_FLOOR``."""
    return np.maximum(log_softmax(np.asarray(logits, np.float64), axis=1), LOG_FLOOR)


def jensen_shannon(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of each row in nats, ``(N,)``, at most ln 2, from log-probabilities ``(N, C)``."""
    p, q = np.exp(log_p), np.exp(log_q)
    log_middle = np.log((p + q) / 2)
    return 0.5 * ((p * (log_p - log_middle)).sum(1) + (q * (log_q - log_middle)).sum(1))


def true_log_probs(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """log p_y of each row, ``(N,)``."""
    return np.take_along_axis(log_probs(logits), np.asarray(labels)[:, None], 1)[:, 0]


def entropy(logits: ArrayLike) -> np.ndarray:
    """Shannon entropy of each row in nats, ``(N,)``."""
    log_p = log_probs(logits)
    return -(np.exp(log_p) * log_p).sum(1)


def modified_entropy(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """-(1 - p_y) log p_y - sum over k != y of p_k log(1 - p_k), row by row, ``(N,)`` (Song and Mittal 2021).

    Two published codes write log p for log(1 - p) and overwrite whole columns of the batch for the true labels.
    """
    log_p = log_probs(logits)
    p = np.exp(log_p)
    log_not = np.maximum(np.log1p(-np.minimum(p, 1 - 1e-16)), LOG_FLOOR)
    own = np.arange(len(p)), np.asarray(labels)
    others = np.ones_like(p, bool)
    others[own] = False
    return -(1 - p[own]) * log_p[own] - np.where(others, p * log_not, 0).sum(1)


def margin(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """phi = log p_y - log(1 - p_y), stable, within +-50 nats, ``(N,)`` (LiRA, arXiv 2112.03570)."""
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    own = np.arange(len(log_p)), np.asarray(labels)
    true = np.maximum(log_p[own], LOG_FLOOR)
    log_p[own] = -np.inf
    rest = np.maximum(np.logaddexp.reduce(log_p, axis=1), LOG_FLOOR)
    return np.clip(true - rest, LOG_FLOOR, -LOG_FLOOR)


def unit(rows: ArrayLike) -> np.ndarray:
    """Rows ``(N, D)`` at length 1, in float64; those of no length stay."""
    long = np.asarray(rows, np.float64)
    return long / np.maximum(np.linalg.norm(long, axis=1, keepdims=True), 1e-12)


def pick(splits: Sequence[str], *wanted: str) -> np.ndarray:
    """Which rows belong to the wanted splits, ``(N,)`` bool."""
    return np.isin(np.asarray(splits), wanted)


def mean(values: Sequence[float] | np.ndarray) -> float | None:
    """The mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None
