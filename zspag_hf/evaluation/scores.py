"""Table -> every score of every model, or None with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_curve

from ..metrics import METRICS, NEEDS, compute
from ..metrics.rows import FORGET, TEST_FORGOTTEN, margin, true_log_probs
from .table import Table

GAP_SCORES = ("ua", "ra", "ta", "mia_confidence")
TOW_SCORES = ("ua", "ra", "ta")


def table_scores(table: Table, name: str, references: Sequence[str], original: str = "original") -> dict:
    """The scores of one model that need nothing but the table.

    Args:
        references: names of the retrained models to compare with, without the model itself; distances are means over
            them.
    """
    rows = {"predictions": table.logits[name], "references": table.references, "splits": table.splits}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an attack that did not converge is still an attack
        scores = compute("unlearning_accuracy", **rows) | compute("membership_svm", **rows)
        scores |= compute("membership_loss", **rows)
        if table.features:
            scores |= compute("linear_probe", features=table.features[name], splits=table.splits)
        if references:
            retrained = [table.logits[reference] for reference in references]
            for metric in ("divergence", "mia_nn"):
                scores |= averaged([compute(metric, **rows, retrained=logits) for logits in retrained])
            labels = table.references
            log_probs = np.stack([true_log_probs(logits, labels) for logits in retrained], 1)
            scores |= compute("rmia", **rows, reference_log_probs=log_probs)
            margins = np.stack([margin(logits, labels) for logits in retrained], 1)
            own = margin(table.logits[original], labels)[:, None]
            scores |= compute("u_lira", **rows, in_margins=own, out_margins=margins)
    return scores


def averaged(records: list[dict]) -> dict:
    """Mean of each value over records; None where one is None."""
    keys = records[0]
    return {k: None if records[0][k] is None else float(np.mean([record[k] for record in records])) for k in keys}


def gap_scores(scores: dict, retrained: dict) -> dict:
    """avg_gap and tow of one model, from its scores and the retrained model's."""
    found = {}
    for key, names in (("avg_gap", GAP_SCORES), ("tow", TOW_SCORES)):
        mine, theirs = ([row.get(name) for name in names] for row in (scores, retrained))
        if None not in mine + theirs:
            found[key] = compute("gap_to_retrained", predictions=mine, references=theirs)[key]
    return found


def with_reasons(models: dict[str, dict], given: set[str]) -> dict[str, str]:
    """Fill every score that METRICS lists, None where it was not computed; returns score -> reason.

    Args:
        given: what was given, keys of NEEDS.
    """
    reasons = {}
    for score, line in METRICS.items():
        for row in models.values():
            row.setdefault(score, None)
        missing = [NEEDS[need] for need in line.needs if need not in given]
        if missing:
            reasons[score] = missing[0]
        elif all(row[score] is None for row in models.values()):
            reasons[score] = "too few images for it"
    return reasons


def membership_roc(table: Table, name: str, points: int = 101) -> dict[str, list[float]] | None:
    """ROC of the loss attack behind mia_loss_auc, thinned to ``points``; None without held-out images of the class."""
    score = true_log_probs(table.logits[name], table.references)
    members, others = score[table.rows(FORGET)], score[table.rows(TEST_FORGOTTEN)]
    if not len(members) or not len(others):
        return None
    truth = np.repeat([1, 0], [len(members), len(others)])
    fpr, tpr, _thresholds = roc_curve(truth, np.concatenate([members, others]))
    grid = np.linspace(0, 1, points)
    return {"fpr": grid.tolist(), "tpr": np.interp(grid, fpr, tpr).tolist()}
