"""Test accuracy of every class, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from .style import INK, TEXT, dot_options, dress, legend, looks, new_figure, numbers, plain

MODELS = ("original", "unlearned", "retrained")
ALL_SHOWN = 30  # classes, each with a row of its own
SHADE = "#f6e3d6"
MOST_FORGOTTEN, MOST_CHANGED = 10, 16  # rows where there are more classes


def accuracy_per_class(report) -> Figure | None:
    """Test accuracy of each class, forgotten ones first and shaded; beyond 30 classes the forgotten ones, those that
    changed most, and above them every retained class's change in order of size. None without two evaluated models."""
    rows = {name: (report.models.get(name) or {}).get("per_class") for name in MODELS}
    rows = {name: {str(label): a for label, a in row.items()} for name, row in rows.items() if row}
    if not {"original", "unlearned"} <= set(rows):
        return None
    gone = [label for label in (str(c["label"]) for c in report.forget_classes) if label in rows["original"]]
    kept = [label for label in rows["original"] if label not in set(gone)]
    many = len(gone) + len(kept) > ALL_SHOWN
    chosen = [*gone, *kept]
    if many:
        change = np.abs(changes(rows, "unlearned", kept))
        first = np.argsort(-change, kind="stable")[:MOST_CHANGED]
        chosen = gone[:MOST_FORGOTTEN] + [kept[i] for i in first]
    row = 0.26 if many else 0.32
    count = f"{len(chosen)} of {len(gone) + len(kept)}" if many else "all"
    figure = new_figure(f"Test accuracy of {count} classes, before and after", 1.4 + row * len(chosen) + 2.4 * many)
    shares = [1.9, row * len(chosen)] if many else [1]
    panels = figure.subplots(len(shares), 1, height_ratios=shares, squeeze=False)[:, 0]
    if many:
        draw_changes(panels[0], rows, kept)
    draw_rows(panels[-1], rows, chosen, gone, many)
    entries = {name: Line2D([], [], **dot_options(name, look)) for name, look in looks(list(rows)).items()}
    if gone:
        entries["forgotten classes"] = Patch(color=SHADE)
    legend(figure, entries)
    return figure


def changes(rows: dict[str, dict], name: str, labels: Sequence[str]) -> np.ndarray:
    """A model's accuracy less the original's, by class; nan where one of them has none."""
    return numbers([rows[name].get(k) for k in labels]) - numbers([rows["original"].get(k) for k in labels])


def draw_rows(axes: Axes, rows: dict[str, dict], chosen: list[str], gone: list[str], many: bool) -> None:
    """One line a class, one dot a model, the models a little apart so that none hides another."""
    places = np.arange(len(chosen))
    offsets = dict(zip(rows, np.linspace(-0.27, 0.27, len(rows)), strict=True))
    for name, look in looks(list(rows)).items():
        axes.plot(numbers([rows[name].get(k) for k in chosen]), places + offsets[name], **dot_options(name, look, 6))
    shaded = sum(label in set(gone) for label in chosen)
    if shaded:
        axes.axhspan(-0.5, shaded - 0.5, color=SHADE, zorder=0)
    title = f"{shaded} of {len(gone)} forgotten classes, and the retained ones that changed most" if many else ""
    dress(axes, "test accuracy", "", title)
    axes.set_yticks(places, [plain(label, 30) for label in chosen])
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def draw_changes(axes: Axes, rows: dict[str, dict], kept: list[str]) -> None:
    """Each model's changes over the retained classes, sorted for itself: how many lose, how many gain."""
    for name in ("retrained", "unlearned"):
        if name in rows:
            change = changes(rows, name, kept)
            change = np.sort(change[np.isfinite(change)])
            colour, _, line = looks([name])[name]
            axes.plot(np.arange(1, len(change) + 1), change, color=colour, linestyle=line, linewidth=2)
    axes.axhline(0, color=INK, linewidth=0.8)
    dress(axes, "retained classes, sorted by change for each model", "change of accuracy,\npercentage points")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    axes.yaxis.label.set_fontsize(TEXT)
