"""Figures 3 and 5 of the ZS-PAG paper (arXiv 2507.21738), from arrays: the one shows images, the other many runs, so no
report or page holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from .style import FAINT, QUANTITIES, WIDTH, colour_bar, dress, legend, new_figure, numbers, order, picture

CURVES = {  # key of a record -> in words, colour, marker, line style
    "acc_rt": ("retained classes", QUANTITIES[0], "o", "-"),
    "acc_ut": ("forgotten classes", QUANTITIES[1], "s", "-"),
    "attack_success_rate": ("attacks that succeed", "#777777", "d", ":"),
}


def heatmap_panels(images: np.ndarray, maps: Mapping[str, np.ndarray]) -> Figure:
    """Figure 3: images in rows, models in columns, each model's heat laid over the image; one scale a row.

    Args:
        images: ``(n, h, w, 3)`` uint8.
        maps: model -> ``(n, h', w')`` heat, at least 0, as :func:`zspag_hf.evaluation.heatmaps.heatmaps` gives it.
    """
    names = order(maps)
    height = 1.0 + len(images) * min(1.45, (WIDTH - 1) / (len(names) + 1))
    figure = new_figure("Where each model looks; one colour scale a row", height)
    panels = figure.subplots(len(images), len(names) + 1, squeeze=False)
    for row, image in enumerate(images):
        highest = max(float(np.max(maps[name][row])) for name in names) or 1.0
        panels[row, 0].imshow(image)
        for axes, name in zip(panels[row, 1:], names, strict=True):
            overlay(axes, image, maps[name][row] / highest)
        for axes, title in zip(panels[row], ["image", *names], strict=True):
            picture(axes, "" if row else title)
    mapped = ScalarMappable(Normalize(0, 1), "inferno")
    bar = colour_bar(figure, panels, mapped, "share of the row's largest", 0.8)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def overlay(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """Heat in [0, 1] over a grey image, the stronger the more opaque."""
    h, w = image.shape[:2]
    axes.imshow(np.asarray(image, dtype=np.float64).mean(2), cmap="gray", vmin=0, vmax=255)
    extent = (-0.5, w - 0.5, h - 0.5, -0.5)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.25 + 0.5 * heat, extent=extent, interpolation="nearest")


def accuracy_against(records: Sequence[Mapping[str, Any]], x: str) -> Figure:
    """Figure 5: what the attack's radius or the number of proxies does to the unlearned model.

    Args:
        records: one run each: "x", "acc_rt", "acc_ut", "attack_success_rate" (shares, None where unknown) and "seed".
        x: what "x" is, with its unit, for the axis.
    """
    places, seeds = sorted({record["x"] for record in records}), len({record["seed"] for record in records})
    figure = new_figure("Test accuracy of the unlearned model", 4.2)
    axes, entries = figure.subplots(), dict[str, Line2D]()
    for key, (text, colour, marker, style) in CURVES.items():
        values = {place: numbers([r[key] for r in records if r["x"] == place]) for place in places}
        known = {place: group[np.isfinite(group)] for place, group in values.items() if np.isfinite(group).any()}
        if not known:
            continue
        at, groups = list(known), list(known.values())
        options: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": style, "linewidth": 1.8}
        axes.plot(at, [group.mean() for group in groups], **options, markersize=6)
        low, high = [group.min() for group in groups], [group.max() for group in groups]
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        entries[text] = Line2D([], [], **options)
    title = f"mean of {seeds} seeds, lowest to highest shaded" if seeds > 1 else ""
    dress(axes, x, "test accuracy, success rate", title, percent="y")
    if places[0] > 0 and places[-1] >= 8 * places[0]:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.03, 1.05)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.6)
    legend(figure, entries)
    return figure
