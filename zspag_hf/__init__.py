"""Zero-shot unlearning for Hugging Face image classifiers: ZS-PAG (arXiv 2507.21738) behind a ``Trainer``."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import UnlearningConfig
    from .errors import UnlearningError
    from .evaluation import evaluate_unlearning
    from .fastclip import FastClip, spectral_norms
    from .methods import METHODS
    from .metrics import METRICS
    from .pipeline.attacks import ATTACKS
    from .pipeline.classifier import PixelClassifier
    from .report.report import UnlearningReport
    from .trainer.trainer import UnlearningTrainer

__version__ = "0.1.0"

__all__ = [
    "ATTACKS",
    "METHODS",
    "METRICS",
    "FastClip",
    "PixelClassifier",
    "UnlearningConfig",
    "UnlearningError",
    "UnlearningReport",
    "UnlearningTrainer",
    "__version__",
    "evaluate_unlearning",
    "spectral_norms",
]

_PLACES = {
    "ATTACKS": "pipeline.attacks",
    "FastClip": "fastclip",
    "METHODS": "methods",
    "METRICS": "metrics",
    "PixelClassifier": "pipeline.classifier",
    "UnlearningConfig": "config",
    "UnlearningError": "errors",
    "UnlearningReport": "report.report",
    "UnlearningTrainer": "trainer.trainer",
    "evaluate_unlearning": "evaluation",
    "spectral_norms": "fastclip",
}


def __getattr__(name: str):
    """Import what is asked for, when it is asked for: ``zspag-hf --help`` need not wait for torch."""
    if name in _PLACES:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
