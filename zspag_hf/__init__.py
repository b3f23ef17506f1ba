"""Zero-shot unlearning for Hugging Face image classifiers: ZS-PAG (arXiv 2507.21738) behind a ``Trainer``."""

from .attacks import ATTACKS
from .classifier import PixelClassifier
from .config import UnlearningConfig
from .errors import UnlearningError
from .evaluation import evaluate_unlearning
from .methods import METHODS
from .metrics import METRICS
from .report import UnlearningReport
from .trainer import UnlearningTrainer

__version__ = "0.1.0"

__all__ = [
    "ATTACKS",
    "METHODS",
    "METRICS",
    "PixelClassifier",
    "UnlearningConfig",
    "UnlearningError",
    "UnlearningReport",
    "UnlearningTrainer",
    "__version__",
    "evaluate_unlearning",
]
