"""Table -> every score of every model, or None with the reason."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_curve

from ..metrics import METRICS, NEEDS, compute
from ..metrics.rows import (
    FORGET,
    NEIGHBOURS,
    RETAIN,
    SPLITS,
    TEST_FORGOTTEN,
    TEST_RETAINED,
    VIEWS,
    margin,
    true_log_probs,
)
from .table import Table

Row = dict[str, Any]  # score -> value, and per_class -> accuracies

TESTS = (TEST_FORGOTTEN, TEST_RETAINED)
GAPS = {"avg_gap": ("ua", "ra", "ta", "mia_confidence"), "tow": ("ua", "ra", "ta")}  # score -> those that it is over
ALONE = "distances between retrained models need two of them"


def table_scores(table: Table, name: str, references: Sequence[str], original: str = "original") -> Row:
    """The scores of one model that need nothing but the table.

    Args:
        references: names of the retrained models to compare with, without the model itself; distances are means over
            them.
    """
    labels = table.references

    def columns(*splits: str, **more: np.ndarray) -> dict[str, np.ndarray]:
        """The table's rows of some splits: ``evaluate`` copies whatever it is given."""
        held = {"predictions": table.logits[name], "references": labels, "splits": table.splits} | more
        return {key: column[table.rows(*splits)] for key, column in held.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an attack that did not converge is still an attack
        scores = compute("unlearning_accuracy", **columns(*SPLITS))
        scores |= compute("membership_svm", **columns(FORGET, RETAIN, TEST_RETAINED))
        scores |= compute("membership_loss", **columns(FORGET, TEST_FORGOTTEN))
        masked = table.logits.get("masked", table.logits[original])  # of images at random nothing is masked
        scores |= compute("over_unlearning", **columns(NEIGHBOURS, masked=masked))
        if name in table.features:
            features = table.features[name]
            scores |= compute("prototype_recovery", **columns(FORGET, *TESTS, VIEWS, features=features))
            scores |= compute("dispersion", **columns(FORGET, features=features))
            scores |= compute("linear_probe", **columns(*TESTS, features=features))
        if references:
            retrained = [table.logits[reference] for reference in references]
            for metric in ("divergence", "mia_nn"):
                scores |= averaged([compute(metric, **columns(*TESTS, retrained=logits)) for logits in retrained])
            log_probs = np.stack([true_log_probs(logits, labels) for logits in retrained], 1)
            scores |= compute("rmia", **columns(FORGET, *TESTS, reference_log_probs=log_probs))
            margins = np.stack([margin(logits, labels) for logits in retrained], 1)
            own = margin(table.logits[original], labels)[:, None]
            scores |= compute("u_lira", **columns(FORGET, in_margins=own, out_margins=margins))
    return scores


def averaged(records: Sequence[Row]) -> Row:
    """Mean of each value over records, also within per_class; None where one is None."""
    mean: Row = {}
    for key in records[0]:
        values = [record[key] for record in records]
        nested = isinstance(values[0], dict)
        mean[key] = averaged(values) if nested else None if None in values else float(np.mean(values))
    return mean


def gap_scores(scores: Row, retrained: Row) -> Row:
    """avg_gap and tow of one model, from its scores and the retrained model's."""
    gaps = {}
    for key, names in GAPS.items():
        mine, theirs = ([row.get(name) for name in names] for row in (scores, retrained))
        if None not in mine + theirs:
            gaps[key] = compute("gap_to_retrained", predictions=mine, references=theirs)[key]
    return gaps


def with_reasons(
    rows: Mapping[str, Row], given: Collection[str], retrained: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Fill every score that METRICS lists, None where it was not computed.

    Args:
        given: what was given, keys of NEEDS. retrained: how many retrained models.

    Returns:
        score -> why no model has it; model -> why it lacks scores that others have.
    """
    reasons = {}
    for score, known in METRICS.items():
        if all([row.setdefault(score) is None for row in rows.values()]):  # a list: every row is to have the score
            missing = [NEEDS[need] for need in known.needs if need not in given]
            reasons[score] = "; ".join(missing) or "not defined on so few images, or for this model: see its definition"
    of_rows = {"retrained": ALONE} if retrained == 1 else {}
    for name, row in rows.items():
        lacking = [score for score in METRICS if row[score] is None and score not in reasons]
        if lacking:
            of_rows.setdefault(name, f"not defined for it: {', '.join(lacking)}")
    return reasons, of_rows


def membership_roc(table: Table, name: str) -> dict[str, list[float]] | None:
    """ROC of the loss attack behind mia_loss_auc, on a grid that is linear above 1 % false positives and
    logarithmic from .1 % to 1 %; None without held-out images of the class."""
    score = true_log_probs(table.logits[name], table.references)
    members, others = score[table.rows(FORGET)], score[table.rows(TEST_FORGOTTEN)]
    if not len(members) or not len(others):
        return None
    truth = np.repeat([1, 0], [len(members), len(others)])
    fpr, tpr, _thresholds = roc_curve(truth, np.concatenate([members, others]))
    grid = np.concatenate([[0.0], np.geomspace(0.001, 0.009, 10), np.linspace(0.01, 1, 100)])
    return {"fpr": grid.tolist(), "tpr": np.interp(grid, fpr, tpr).tolist()}
