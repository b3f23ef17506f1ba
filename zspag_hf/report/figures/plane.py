"""Proxies among real images, in two dimensions (figure 4 of the ZS-PAG paper, arXiv 2507.21738)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import dress, legend, new_figure, plain

KINDS = {  # kind -> in words, marker, size in square points; the last ones lie on top
    "retained": ("test images of retained classes", "o", 20),
    "proxy": ("proxies", "^", 22),
    "forgotten": ("test images of forgotten classes", "X", 36),
}
# Paul Tol's muted colours for the most frequent classes; forgotten ones are black, the rest grey.
CLASSES = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499")
GONE, REST = "#000000", "#b5b5b5"


def projection(report) -> Figure | None:
    """Each point an image as the original model's features see it, made from forget images (proxies) or real: a proxy
    stands for its class where it lies among that class's images. None below level full, or without proxies."""
    if not report.projection:
        return None
    points = {key: np.array(values) for key, values in report.projection.items()}
    colours = class_colours(points["label"].tolist(), [str(c["label"]) for c in report.forget_classes])
    figure = new_figure("What the model finds alike: do proxies lie among the images they stand for?", 6.2)
    axes = figure.subplots()
    entries: dict[str, Line2D] = {}
    for kind, (text, marker, size) in KINDS.items():
        chosen = points["kind"] == kind
        if chosen.any():
            shade = [colours.get(label, REST) for label in points["label"][chosen].tolist()]
            line = {"linewidths": 0.4, "edgecolors": "white"} if kind != "proxy" else {"linewidths": 0}
            axes.scatter(points["x"][chosen], points["y"][chosen], c=shade, marker=marker, s=size, **line)
            entries[text] = swatch("#555555", marker)
    gone = [label for label, colour in colours.items() if colour == GONE]
    for label, colour in colours.items():
        text = plain(label, 18) if colour != GONE else f"{plain(label, 18)} (forgotten)"
        entries.setdefault("forgotten classes" if colour == GONE and len(gone) > 1 else text, swatch(colour, "s"))
    more = len(set(points["label"].tolist()) - set(colours))
    if more:
        entries[f"{more} more class{'es' if more > 1 else ''}"] = swatch(REST, "s")
    dress(axes, "t-SNE of penultimate features: only nearness has a meaning")
    axes.set_xticks([])
    axes.set_yticks([])
    legend(figure, entries)
    return figure


def class_colours(labels: list[str], forgotten: list[str]) -> dict[str, str]:
    """Label -> colour of the most frequent retained classes and of the forgotten ones."""
    counts = Counter(label for label in labels if label not in set(forgotten))
    frequent = {label for label, _ in counts.most_common(len(CLASSES))}
    colours = dict(zip(sorted(frequent), CLASSES, strict=False))
    return colours | {label: GONE for label in forgotten if label in set(labels)}


def swatch(colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6)
