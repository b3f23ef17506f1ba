"""Every picture of a report, drawn without a display and without matplotlib's global state.

Those in FIGURES need nothing but the report; :mod:`.paper` draws those that need images or features.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ..files import write_whole
from ..findings import Findings
from .behaviour import accuracy_per_class, heatmaps, membership_roc, relearning
from .overview import forgetting_scores
from .paper import accuracy_against, heatmap_panels
from .run import adaptation, layers, projection

__all__ = ["FIGURES", "accuracy_against", "draw_figures", "heatmap_panels", "png", "write_figures"]

# A new picture is one name here, one caption in templates/captions.yaml, and one function: report -> Figure, or None.
DRAWN: tuple[Callable[[Findings], Figure | None], ...] = (
    *(forgetting_scores, accuracy_per_class, relearning, membership_roc, heatmaps, projection, adaptation, layers),
)
FOLDER = "figures"
FIGURES = {draw.__name__: draw for draw in DRAWN}


def draw_figures(report: Findings) -> dict[str, bytes]:
    """Name -> PNG of every picture that the report has the data for."""
    drawn = {name: draw(report) for name, draw in FIGURES.items()}
    return {name: png(figure) for name, figure in drawn.items() if figure is not None}


def png(figure: Figure) -> bytes:
    """A figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_figures(pictures: Mapping[str, bytes], folder: str) -> list[str]:
    """Write each PNG whole or not at all into ``folder/figures/NAME.png``, and remove pictures of FIGURES that are no
    longer drawn; returns the paths written."""
    target = Path(folder, FOLDER)
    target.mkdir(parents=True, exist_ok=True)
    paths = [write_whole(str(target / f"{name}.png"), data) for name, data in pictures.items()]
    for name in set(FIGURES) - set(pictures):
        (target / f"{name}.png").unlink(missing_ok=True)
    return paths
