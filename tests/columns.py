"""Hand-made columns of the common table that the metrics read."""

import numpy as np


def binary(scores):
    """Logits of two classes whose margin for class 0 is the score."""
    return np.stack([scores, np.zeros(len(scores))], 1).astype(np.float32)


def sure(labels, confidence, classes=4):
    """Logits that give each label its confidence, and the other classes equal shares of the rest."""
    p = np.repeat((1 - np.asarray(confidence))[:, None] / (classes - 1), classes, 1)
    p[np.arange(len(labels)), labels] = confidence
    return np.log(p).astype(np.float32)


def stack(**parts):
    """Split -> (logits, labels), as columns of the common table."""
    logits, labels = zip(*parts.values(), strict=True)
    splits = np.repeat(list(parts), [len(part) for part in labels])
    return {"predictions": np.concatenate(logits), "references": np.concatenate(labels), "splits": splits}
