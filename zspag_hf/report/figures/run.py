"""What one unlearning run did: layer by layer, reading by reading, and where its proxies lie among real images."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from ..findings import Findings
from .style import INK, QUANTITIES, SMALL, dress, legend, new_figure, numbers, picture, plain

LONG_NAME, MOST_NAMES = 28, 36  # characters of a layer's name, and names beside one axis
FACTS = (  # layer facts -> what they are, and the axis of each panel
    ({"rank": "proxies' rank / width"}, "share of the width"),
    ({"free_forget_energy": "free to forget"}, "share of forget energy"),
    ({"weight_change": "weights", "proxy_drift": "outputs on proxies"}, "relative change"),
)
KINDS = {  # kind -> in words, marker, size in square points, width of its outline; the last ones lie on top
    "retained": ("test images of retained classes", "o", 20, 0.4),
    "proxy": ("proxies", "^", 22, 0),
    "forgotten": ("test images of forgotten classes", "X", 36, 0.4),
}
# Paul Tol's muted colours for the most frequent classes; forgotten ones are black, the rest grey.
MUTED = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499")
GONE, REST = "#000000", "#b5b5b5"


def layers(report: Findings) -> Figure | None:
    """Each constrained layer in the order of the forward pass: how much the proxies use of it, how much of the forget
    images' energy is left free to change, and how far weights and outputs moved. None without layer facts."""
    facts = report.layers
    if not facts:
        return None
    height = min(max(2.2 + 0.24 * len(facts), 3.4), 11.0)
    figure = new_figure("What each layer was free to forget, and how far it moved", height)
    panels = figure.subplots(1, len(FACTS), sharey=True, width_ratios=[1, 1, 1.3])
    columns = {key: numbers([fact.get(key) for fact in facts]) for texts, _ in FACTS for key in texts}
    columns["rank"] = columns["rank"] / numbers([fact.get("d_in") for fact in facts])
    for axes, (texts, unit) in zip(panels, FACTS, strict=True):
        draw_layers(axes, {text: columns[key] for key, text in texts.items()})
        dress(axes, unit, percent="x" if axes is panels[0] else "")
        if axes is not panels[0]:
            scale_small(axes, np.concatenate([columns[key] for key in texts]))
    panels[0].set_xlim(-0.02, 1.02)
    step, last = math.ceil(len(facts) / MOST_NAMES), len(facts) - 1
    names = short_names([fact["name"] for fact in facts])
    named = [*range(0, last - step + 1, step), last]  # the head always
    panels[0].set_yticks(named, [plain(names[place], 34) for place in named])
    panels[0].set_ylim(last + 0.6, -0.6)
    return figure


def draw_layers(axes: Axes, columns: Mapping[str, np.ndarray]) -> None:
    """One or two values a layer, and above the panel what they are."""
    for (text, values), colour, marker in zip(columns.items(), QUANTITIES, "so", strict=False):
        size = 6.0 if len(values) <= MOST_NAMES else 4.0
        fill: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.3} if marker == "o" else {}
        options: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size} | fill
        axes.plot(values, np.arange(len(values)), linestyle="none", **options, label=text)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 1), fontsize=SMALL, frameon=False, handlelength=1)


def scale_small(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic scale that also has a place for 0, a layer that did not move."""
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive):
        least = 10.0 ** math.floor(math.log10(positive.min()))
        zeros = bool((values <= 0).any())
        axes.set_xscale("symlog" if zeros else "log", **({"linthresh": least} if zeros else {}))
        axes.set_xlim(-least / 3 if zeros else least, 10.0 ** math.ceil(math.log10(positive.max() * 1.2)))
        axes.xaxis.set_minor_formatter(NullFormatter())  # powers of ten alone have room


def short_names(names: Sequence[str]) -> list[str]:
    """Module names without the leading parts that most share; inner words of long ones cut to four letters.

    ``vit.layers.0.attention.q_proj`` -> ``layers.0.attention.q_proj``
    """
    parts = [name.split(".") for name in names]
    while first := Counter(part[0] for part in parts if len(part) > 1):
        word, count = first.most_common(1)[0]
        if count < max(2, len(parts) / 2) or word.isdigit() or any(p[0] == word and p[1].isdigit() for p in parts):
            break
        parts = [part[1:] if part[0] == word and len(part) > 1 else part for part in parts]
    cut = [[part[0], *(word[:4] for word in part[1:-1]), *part[1:][-1:]] for part in parts]
    whole = [".".join(part) for part in parts]
    return [name if len(name) <= LONG_NAME else ".".join(short) for name, short in zip(whole, cut, strict=True)]


def adaptation(report: Findings) -> Figure | None:
    """What an adaptive run read on held-out data as it went: how far the forgotten classes are from forgotten, and how
    far the proxies, which stand for retained images, moved. None for a fixed run."""
    if not report.curve or not report.choice:
        return None
    steps = spread_steps(report.curve)
    left, moved = (numbers([entry[key] for entry in report.curve]) for key in ("forget_probability", "proxy_kl"))
    budget = report.choice["proxy_budget"]
    highest = np.nanmax(np.append(moved, budget)) * 1.5
    figure = new_figure("What held-out images said of the run: forget as much as the proxies allow", 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    line: dict[str, Any] = {"marker": "o", "markersize": 5, "linewidth": 1.8}
    top.plot(steps, left, color=QUANTITIES[0], **line)
    dress(top, "", "probability of\nforgotten classes", "held-out forget images: down is forgotten", percent="y")
    top.set_ylim(-0.05, 1.1)
    bottom.plot(steps, moved, color=QUANTITIES[1], **line)
    bottom.axhline(budget, color=INK, linewidth=1.2, linestyle="--")
    bottom.set_ylim(-0.03 * highest, highest)
    dress(bottom, "optimizer steps", "divergence from\nthe original, nats", "held-out proxies: up is damage")
    shade_phases((top, bottom), report.curve, steps)
    legend(figure, {"budget": Line2D([], [], color=INK, linewidth=1.2, linestyle="--")})
    return figure


def spread_steps(curve: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Steps of the readings; the head may be fitted without a step, and is then set a little to the right."""
    steps = numbers([entry["step"] for entry in curve])
    for i in range(1, len(steps)):
        if curve[i]["phase"] != curve[i - 1]["phase"] and steps[i] <= steps[i - 1]:
            steps[i:] += max(0.06 * np.nanmax(steps), 1.0)
    return steps


def shade_phases(panels: Sequence[Axes], curve: Sequence[Mapping[str, Any]], steps: np.ndarray) -> None:
    """The head's part shaded, both parts named where there are two."""
    head = np.array([entry["phase"] == "head" for entry in curve])
    if not head.any():
        return
    start = (steps[~head].max() + steps[head].min()) / 2 if (~head).any() else steps[head].min()
    end = steps.max() + 0.03 * max(np.ptp(steps), 1)
    for axes in panels:
        axes.axvspan(start, end, color="#efefef", zorder=0)
        axes.set_xlim(right=end)
    for text, side in (("whole network  ", "right"), (" head ", "left")):
        if side == "left" or (~head).any():
            options: dict[str, Any] = {"ha": side, "fontsize": SMALL, "color": INK}
            panels[1].text(start, 0.8, text, transform=panels[1].get_xaxis_transform(), **options)


def projection(report: Findings) -> Figure | None:
    """Each point an image as the original model's features see it, made from forget images (proxies) or real: a proxy
    stands for its class where it lies among that class's images. None below level full, or without proxies."""
    if not report.projection:
        return None
    points = {key: np.array(values) for key, values in report.projection.items()}
    labels = points["label"].tolist()
    colours = class_colours(labels, [str(c["label"]) for c in report.forget_classes])
    figure = new_figure("What the model finds alike: do proxies lie among the images they stand for?", 6.2)
    axes, entries = figure.subplots(), dict[str, Line2D]()
    for kind, (text, marker, size, outline) in KINDS.items():
        chosen = points["kind"] == kind
        if chosen.any():
            shades = [colours.get(label, REST) for label in points["label"][chosen].tolist()]
            edges: dict[str, Any] = {"linewidths": outline} | ({"edgecolors": "white"} if outline else {})
            axes.scatter(points["x"][chosen], points["y"][chosen], c=shades, marker=marker, s=size, **edges)
            entries[text] = swatch("#555555", marker)
    several = list(colours.values()).count(GONE) > 1
    for label, colour in colours.items():
        text = plain(label, 18) if colour != GONE else f"{plain(label, 18)} (forgotten)"
        entries.setdefault("forgotten classes" if colour == GONE and several else text, swatch(colour, "s"))
    if more := len(set(labels) - set(colours)):
        entries[f"{more} more class{'es' if more > 1 else ''}"] = swatch(REST, "s")
    dress(axes, "t-SNE of penultimate features: only nearness has a meaning")
    picture(axes)
    legend(figure, entries)
    return figure


def class_colours(labels: Sequence[str], forgotten: Sequence[str]) -> dict[str, str]:
    """Label -> colour of the most frequent retained classes and of the forgotten ones."""
    counts = Counter(label for label in labels if label not in set(forgotten))
    frequent = sorted(label for label, _ in counts.most_common(len(MUTED)))
    return dict(zip(frequent, MUTED, strict=False)) | {label: GONE for label in forgotten if label in set(labels)}


def swatch(colour: str, marker: str) -> Line2D:
    """A legend's sign for a colour or a marker."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6)
