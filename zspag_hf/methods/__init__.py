"""Every method by name. A new one is one file here and one line in METHODS."""

from .amun import AMUN
from .base import Method, Plan
from .random_labels import RandomLabels
from .zspag import ZSPAG

METHODS: dict[str, type[Method]] = {
    "zspag": ZSPAG,
    "random_labels": RandomLabels,
    "amun": AMUN,
}

__all__ = ["AMUN", "METHODS", "ZSPAG", "Method", "Plan", "RandomLabels"]
