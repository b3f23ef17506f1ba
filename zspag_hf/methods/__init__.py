"""Every method by name. A new one is one file here and one line in METHODS."""

from .base import Method, Plan
from .random_labels import RandomLabels
from .zspag import ZSPAG

METHODS: dict[str, type[Method]] = {
    "zspag": ZSPAG,
    "random_labels": RandomLabels,
}

__all__ = ["METHODS", "ZSPAG", "Method", "Plan", "RandomLabels"]
