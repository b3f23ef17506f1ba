"""What happened, as one JSON file, one page, and as text."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Self

from .figures import draw_figures, write_figures
from .files import finite, write_whole
from .findings import MODELS, Findings
from .page import render
from .tables import evaluated, score_table, summary_table

__all__ = ["MODELS", "PAGE_NAME", "REPORT_NAME", "UnlearningReport", "finite", "versions"]

REPORT_NAME, PAGE_NAME = "unlearning_report.json", "unlearning_report.html"
PACKAGES = ("zspag-hf", "torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface-hub")


@dataclass
class UnlearningReport(Findings):
    """The report of one run: its fields are those of :class:`.findings.Findings`."""

    def save(self, folder: str) -> str:
        """Write ``unlearning_report.json`` into a folder, and once a model is evaluated ``unlearning_report.html`` and
        ``figures/*.png``, every file whole or not at all; returns the path of the first.

        The numbers are written before anything is drawn: a failure in drawing loses none of them, and leaves an earlier
        page and its pictures as they were.
        """
        os.makedirs(folder, exist_ok=True)
        text = json.dumps(finite(asdict(self)), indent=1, allow_nan=False)
        path = write_whole(os.path.join(folder, REPORT_NAME), text.encode())
        if evaluated(self):
            pictures = draw_figures(self)
            page = render(self, pictures)
            write_figures(pictures, folder)
            write_whole(os.path.join(folder, PAGE_NAME), page.encode())
        return path

    @classmethod
    def load(cls, folder: str) -> Self:
        """Read ``unlearning_report.json`` from a folder."""
        with open(os.path.join(folder, REPORT_NAME), encoding="utf-8") as file:
            return cls(**json.load(file))

    def summary(self) -> str:
        """The models by a few scores, as fixed-width text."""
        return summary_table(evaluated(self))

    def table(self) -> str:
        """Every score of every model, as fixed-width text: the best value and distances to the retrained model marked,
        the reason for every one that is missing."""
        return score_table(self)


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
