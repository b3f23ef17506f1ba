"""Figures 3 and 5 of the ZS-PAG paper (arXiv 2507.21738), from arrays: the one shows images, the other many runs, so no
report or page holds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from .behaviour import order
from .style import FAINT, INK, QUANTITIES, SMALL, TEXT, WIDTH, dress, legend, new_figure, numbers, plain

CURVES = {"acc_rt": ("retained classes", "o", "-"), "acc_ut": ("forgotten classes", "s", "-")}


def heatmap_panels(images: np.ndarray, maps: dict[str, np.ndarray]) -> Figure:
    """Figure 3: images in rows, models in columns, each model's heat laid over the image; one scale a row.

    Args:
        images: ``(n, h, w, 3)`` uint8.
        maps: model -> ``(n, h', w')`` heat, at least 0, as :func:`zspag_hf.evaluation.heatmaps.heatmaps` gives it.
    """
    names = order(maps)
    height = 1.0 + len(images) * min(1.45, (WIDTH - 1) / (len(names) + 1))
    figure = new_figure("Where each model looks; one colour scale a row", height)
    panels = figure.subplots(len(images), len(names) + 1, squeeze=False)
    for row, image in zip(range(len(images)), images, strict=True):
        highest = max(float(np.max(maps[name][row])) for name in names) or 1.0
        panels[row, 0].imshow(image)
        for axes, name in zip(panels[row, 1:], names, strict=True):
            overlay(axes, image, maps[name][row] / highest)
    for axes in panels.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, name in zip(panels[0], ["image", *names], strict=True):
        axes.set_title(plain(name, 16), fontsize=TEXT, color=INK)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "inferno"), ax=panels.ravel().tolist(), shrink=0.8, pad=0.02)
    bar.set_label("share of the row's largest", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def overlay(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """Heat in [0, 1] over a grey image, the stronger the more opaque."""
    h, w = image.shape[:2]
    grey = np.asarray(image, dtype=np.float64).mean(2)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    extent = (-0.5, w - 0.5, h - 0.5, -0.5)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.25 + 0.5 * heat, extent=extent, interpolation="nearest")


def accuracy_against(records: Sequence[dict], x: str) -> Figure:
    """Figure 5: what the attack's radius or the number of proxies does to the unlearned model.

    Args:
        records: one run each: "x", "acc_rt", "acc_ut", "attack_success_rate" (shares, None where unknown) and "seed".
        x: what "x" is, with its unit, for the axis.
    """
    places = sorted({record["x"] for record in records})
    seeds = len({record["seed"] for record in records})
    figure = new_figure("Test accuracy of the unlearned model", 4.2)
    axes = figure.subplots()
    entries: dict[str, Line2D] = {}
    looks = dict(zip(CURVES, QUANTITIES, strict=True))
    curves = CURVES | {"attack_success_rate": ("attacks that succeed", "d", ":")}
    for key, (text, marker, style) in curves.items():
        groups = [numbers([r[key] for r in records if r["x"] == place]) for place in places]
        groups = [(place, g[np.isfinite(g)]) for place, g in zip(places, groups, strict=True)]
        groups = [(place, group) for place, group in groups if len(group)]
        if not groups:
            continue
        at, mean = [place for place, _ in groups], [group.mean() for _, group in groups]
        options = {"color": looks.get(key, "#777777"), "marker": marker, "linestyle": style, "linewidth": 1.8}
        axes.plot(at, mean, **options, markersize=6)
        low, high = [group.min() for _, group in groups], [group.max() for _, group in groups]
        axes.fill_between(at, low, high, color=options["color"], alpha=0.18, linewidth=0)
        entries[text] = Line2D([], [], **options)
    dress(
        axes, x, "test accuracy, success rate", f"mean of {seeds} seeds, lowest to highest shaded" if seeds > 1 else ""
    )
    if places[0] > 0 and places[-1] >= 8 * places[0]:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(True, axis="y", color=FAINT, linewidth=0.6)
    legend(figure, entries)
    return figure
