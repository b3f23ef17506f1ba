"""What one unlearning run did: layer by layer, and round by round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from .style import INK, QUANTITIES, SMALL, dress, legend, new_figure, numbers, plain

LONG_NAME, MOST_NAMES = 28, 36  # characters of a layer's name, and names beside one axis
PANELS = (  # layer facts -> what they are, and the axis of each panel
    ({"rank": "proxies' rank / width"}, "share of the width"),
    ({"free_forget_energy": "free to forget"}, "share of forget energy"),
    ({"weight_change": "weights", "proxy_drift": "outputs on proxies"}, "relative change"),
)
PHASES = {"whole": "whole network", "head": "head"}


def layers(report) -> Figure | None:
    """Each constrained layer in the order of the forward pass: how much the proxies use of it, how much of the forget
    images' energy is left free to change, and how far weights and outputs moved. None without layer facts."""
    facts = report.layers
    if not facts:
        return None
    height = min(max(2.2 + 0.24 * len(facts), 3.4), 11.0)
    figure = new_figure("What each layer was free to forget, and how far it moved", height)
    panels = figure.subplots(1, len(PANELS), sharey=True, width_ratios=[1, 1, 1.3])
    columns = {key: numbers([fact.get(key) for fact in facts]) for texts, _ in PANELS for key in texts}
    columns["rank"] = columns["rank"] / numbers([fact.get("d_in") for fact in facts])
    for axes, (texts, unit) in zip(panels, PANELS, strict=True):
        draw_layers(axes, {text: columns[key] for key, text in texts.items()})
        dress(axes, unit)
    panels[0].set_xlim(-0.02, 1.02)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1))
    for axes, (texts, _) in zip(panels[1:], PANELS[1:], strict=True):
        scale_small(axes, np.concatenate([columns[key] for key in texts]))
    step = math.ceil(len(facts) / MOST_NAMES)
    names, last = short_names([fact["name"] for fact in facts]), len(facts) - 1
    named = [*range(0, last - step + 1, step), last]  # the head always
    panels[0].set_yticks(named, [plain(names[place], 34) for place in named])
    panels[0].set_ylim(last + 0.6, -0.6)
    return figure


def draw_layers(axes: Axes, columns: dict[str, np.ndarray]) -> None:
    """One or two values a layer, and above the panel what they are."""
    for (text, values), colour, marker in zip(columns.items(), QUANTITIES, "so", strict=False):
        options = {"color": colour, "marker": marker, "markersize": 6.0 if len(values) <= MOST_NAMES else 4.0}
        if marker == "o":
            options |= {"markerfacecolor": "white", "markeredgewidth": 1.3}
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
    while True:
        first = Counter(part[0] for part in parts if len(part) > 1)
        if not first:
            break
        word, count = first.most_common(1)[0]
        if count < max(2, len(parts) / 2) or word.isdigit() or any(p[0] == word and p[1].isdigit() for p in parts[:]):
            break
        parts = [part[1:] if part[0] == word and len(part) > 1 else part for part in parts]
    return [shortened(part) for part in parts]


def shortened(parts: list[str]) -> str:
    name = ".".join(parts)
    if len(name) <= LONG_NAME:
        return name
    return ".".join([parts[0], *(part[:4] for part in parts[1:-1]), parts[-1]])


def adaptation(report) -> Figure | None:
    """What an adaptive run read after each round on held-out data: how far the forgotten classes are from forgotten,
    and how far the proxies, which stand for retained images, moved. None for a fixed run."""
    if not report.curve or not report.choice:
        return None
    steps = spread_steps(report.curve)
    kept = np.array([bool(entry["kept"]) for entry in report.curve])
    figure = new_figure("How the run chose its own end: forget as much as the held-out proxies allow", 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    entries = {}
    draw_rounds(top, steps, numbers([e["forget_probability"] for e in report.curve]), kept, QUANTITIES[0], 1.08)
    dress(top, "", "probability of\nforgotten classes", "held-out forget images: down is forgotten")
    top.set_ylim(-0.05, 1.1)
    top.yaxis.set_major_formatter(PercentFormatter(1))
    budget = report.choice["proxy_budget"]
    moved = numbers([entry["proxy_kl"] for entry in report.curve])
    highest = np.nanmax(np.append(moved[kept], budget)) * 1.5
    draw_rounds(bottom, steps, moved, kept, QUANTITIES[1], highest * 0.96)
    bottom.axhline(budget, color=INK, linewidth=1.2, linestyle="--")
    bottom.set_ylim(-0.03 * highest, highest)
    dress(bottom, "optimizer steps", "divergence from\nthe original, nats", "held-out proxies: up is damage")
    shade_phases((top, bottom), report.curve, steps)
    marks = {"color": INK, "linestyle": "none", "markersize": 6}
    entries["round kept"] = Line2D([], [], marker="o", **marks)
    entries["rolled back"] = Line2D([], [], marker="x", markeredgewidth=1.6, **marks)
    if bool((moved[~kept] > highest * 0.96).any()) or bool(np.isnan(moved[~kept]).any()):
        entries["rolled back, beyond the scale"] = Line2D([], [], marker="^", markerfacecolor="white", **marks)
    entries["budget"] = Line2D([], [], color=INK, linewidth=1.2, linestyle="--")
    legend(figure, entries)
    return figure


def spread_steps(curve: list[dict]) -> np.ndarray:
    """Steps of the readings; the head may be fitted without a step, and is then set a little to the right."""
    steps = numbers([entry["step"] for entry in curve])
    for i in range(1, len(steps)):
        if curve[i]["phase"] != curve[i - 1]["phase"] and steps[i] <= steps[i - 1]:
            steps[i:] += max(0.06 * np.nanmax(steps), 1.0)
    return steps


def draw_rounds(axes: Axes, steps, values, kept, colour: str, edge: float) -> None:
    """Kept rounds as a line, those rolled back as crosses, beyond the edge or not finite as arrows at it."""
    axes.plot(steps[kept], values[kept], color=colour, marker="o", markersize=5, linewidth=1.8)
    off = ~kept & ~(values <= edge)  # nan is off too
    inside = ~kept & ~off
    cross = {"color": colour, "linestyle": "none", "markersize": 6.5}
    axes.plot(steps[inside], values[inside], marker="x", markeredgewidth=1.6, **cross)
    axes.plot(steps[off], np.full(int(off.sum()), edge), marker="^", markerfacecolor="white", **cross)


def shade_phases(panels: Sequence[Axes], curve: list[dict], steps: np.ndarray) -> None:
    """The head's part shaded, both parts named where there are two."""
    head = np.array([entry["phase"] == "head" for entry in curve])
    if not head.any():
        return
    start = (steps[~head].max() + steps[head].min()) / 2 if (~head).any() else steps[head].min()
    end = steps.max() + 0.03 * max(np.ptp(steps), 1)
    for axes in panels:
        axes.axvspan(start, end, color="#efefef", zorder=0)
        axes.set_xlim(right=end)
    for x, phase, side in ((start, "whole", "right"), (start, "head", "left")):
        if phase == "head" or (~head).any():
            text = f" {PHASES[phase]} " if phase == "head" else f"{PHASES[phase]}  "
            panels[1].text(x, 0.8, text, transform=panels[1].get_xaxis_transform(), ha=side, fontsize=SMALL, color=INK)
