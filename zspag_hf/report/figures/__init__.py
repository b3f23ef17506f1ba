"""Every picture of a report, drawn without a display and without matplotlib's global state.

Those in FIGURES need nothing but the report; :mod:`.paper` draws those that need images or features.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from matplotlib.figure import Figure

from ..files import write_whole
from .behaviour import heatmaps, membership_roc, relearning
from .classes import accuracy_per_class
from .overview import forgetting_scores
from .paper import accuracy_against, heatmap_panels
from .plane import projection
from .run import adaptation, layers

__all__ = [
    "FIGURES",
    "accuracy_against",
    "accuracy_per_class",
    "adaptation",
    "draw_figures",
    "forgetting_scores",
    "heatmap_panels",
    "heatmaps",
    "layers",
    "membership_roc",
    "projection",
    "relearning",
    "save_figures",
    "write_figures",
]

FOLDER = "figures"

# A new picture is one line here, one caption in zspag_hf.report.page, and one function: report -> Figure, or None.
FIGURES: dict[str, Callable[..., Figure | None]] = {
    "forgetting_scores": forgetting_scores,
    "accuracy_per_class": accuracy_per_class,
    "relearning": relearning,
    "membership_roc": membership_roc,
    "heatmaps": heatmaps,
    "projection": projection,
    "adaptation": adaptation,
    "layers": layers,
}


def draw_figures(report) -> dict[str, bytes]:
    """Name -> PNG of every picture that the report has the data for."""
    drawn = {name: draw(report) for name, draw in FIGURES.items()}
    return {name: png(figure) for name, figure in drawn.items() if figure is not None}


def png(figure: Figure) -> bytes:
    """A figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_figures(report, folder: str) -> list[str]:
    """Draw into ``folder/figures/NAME.png``; returns the paths. See :func:`write_figures`."""
    return write_figures(draw_figures(report), folder)


def write_figures(pictures: dict[str, bytes], folder: str) -> list[str]:
    """Write each PNG whole or not at all, and remove pictures of FIGURES that are no longer drawn; returns the paths
    written."""
    target = os.path.join(folder, FOLDER)
    os.makedirs(target, exist_ok=True)
    paths = [write_whole(os.path.join(target, f"{name}.png"), data) for name, data in pictures.items()]
    for name in set(FIGURES) - set(pictures):
        stale = os.path.join(target, f"{name}.png")
        if os.path.exists(stale):
            os.remove(stale)
    return paths
