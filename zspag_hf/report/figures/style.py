"""What every picture shares: sizes, one colour and marker a model, and text that no label can break.

Everything is set on the figure at hand: matplotlib's global settings, which threads share, stay untouched.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, repeat
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

WIDTH, DPI = 8.0, 160  # inches, and 1,280 pixels: text stays readable at half the size
TITLE, TEXT, SMALL = 12.0, 10.0, 9.0  # points
INK, FAINT = "#222222", "#d9d9d9"
DOTTED: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": ":"}


class Look(NamedTuple):
    """How one model is drawn."""

    colour: str
    marker: str
    dashes: Any  # as matplotlib's linestyle


# Okabe and Ito's colours, told from each other by colour-blind readers; markers differ too.
ROLES = {
    "original": Look("#6e6e6e", "s", "-"),
    "masked": Look("#a6a6a6", "D", (0, (4, 2))),
    "unlearned": Look("#d55e00", "o", "-"),
    "retrained": Look("#009e73", "^", "-"),
}
BESIDE, MARKERS = ("#0072b2", "#cc79a7", "#e69f00", "#56b4e9"), "vPXp<>hd*"  # every pair once, then anew
QUANTITIES = ("#332288", "#aa4499")  # what is no model: layers' shares, a run's measurements
RANKS = {"original": 0, "masked": 1, "unlearned": 3, "retrained": 4}  # others between


def looks(models: Iterable[str]) -> dict[str, Look]:
    """Model -> look; "retrained 2" looks as "retrained", other names take turns."""
    turns = map(Look, cycle(BESIDE), cycle(MARKERS), repeat("-"))
    return {name: ROLES.get(role_of(name)) or next(turns) for name in models}


def role_of(name: str) -> str:
    """The model's name without the number of a retrained one."""
    head, _, number = name.rpartition(" ")
    return head if head == "retrained" and number.isdigit() else name


def order(names: Iterable[str]) -> list[str]:
    """Original, masked, others, unlearned, retrained: the order of the tables."""
    return sorted(names, key=lambda name: RANKS.get(role_of(name), 2))


def dot_options(name: str, look: Look, size: float = 7.0) -> dict[str, Any]:
    """Options of ``Axes.plot`` for one model's dots without a line."""
    fill = "white" if name == "masked" else look.colour  # an outline, since it lies under others most of the time
    dot = {"linestyle": "none", "marker": look.marker, "markersize": size, "markerfacecolor": fill}
    return dot | {"markeredgecolor": look.colour, "markeredgewidth": 1.3}


def plain(text: object, most: int = 40) -> str:
    """A label as one line without mathematics: ``$`` would start a formula, a leading ``_`` hide a legend entry."""
    line = " ".join(str(text).split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Values as float64, None as nan, which is not drawn."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def new_figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches, that keeps its texts from overlapping by itself."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=TITLE, color=INK, fontweight="bold", x=0.01, ha="left")
    return figure


def dress(axes: Axes, x: str = "", y: str = "", title: str = "", percent: str = "") -> Axes:
    """Axis titles with units, light grid, no frame above and to the right; axes named in ``percent`` ("x", "y" or
    "xy") show shares as percentages."""
    axes.set_xlabel(x, fontsize=TEXT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT, color=INK)
    if title:
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left")
    for name in percent:
        getattr(axes, f"{name}axis").set_major_formatter(PercentFormatter(1))
    axes.tick_params(labelsize=SMALL, colors=INK, which="both")
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def picture(axes: Axes, title: str = "") -> None:
    """Axes that hold an image: no ticks, and a title above."""
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(plain(title, 17), fontsize=TEXT, color=INK)


def colour_bar(figure: Figure, panels: np.ndarray, mapped: ScalarMappable, label: str, shrink: float) -> Colorbar:
    """One bar for all panels, with what its colours mean."""
    bar = figure.colorbar(mapped, ax=panels.ravel().tolist(), shrink=shrink, pad=0.02)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return bar


def legend(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """One legend for the whole picture, below it, where it can hide no data; as many columns as surely fit, and the
    picture as much higher as more than two lines of it need."""
    widest = 0.6 + 0.078 * max(map(len, entries))  # inches: handle and gap, and one character at this size
    columns = max(1, min(4, int(figure.get_figwidth() / widest)))
    lines = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, lines - 2))
    texts, ncols = [plain(text, 60) for text in entries], min(columns, len(entries))
    look: dict[str, Any] = {"loc": "outside lower left", "fontsize": SMALL, "frameon": False, "handlelength": 2.4}
    figure.legend(list(entries.values()), texts, ncols=ncols, **look)
