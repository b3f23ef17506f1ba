"""What every picture shares: sizes, one colour and marker a model, and text that no label can break.

Everything is set on the figure at hand: matplotlib's global settings, which threads share, stay untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 160  # inches, and 1,280 pixels: text stays readable at half the size
TITLE, TEXT, SMALL = 12.0, 10.0, 9.0  # points
INK, FAINT = "#222222", "#d9d9d9"

# Okabe and Ito's colours, told apart by colour-blind readers; markers differ too.
ROLES = {  # model -> colour, marker, line style
    "original": ("#6e6e6e", "s", "-"),
    "masked": ("#a6a6a6", "D", (0, (4, 2))),
    "unlearned": ("#d55e00", "o", "-"),
    "retrained": ("#009e73", "^", "-"),
}
BESIDE, MARKERS = ("#0072b2", "#cc79a7", "#e69f00", "#56b4e9"), "vPXp<>hd*"  # every pair once, then anew
QUANTITIES = ("#332288", "#aa4499")  # what is no model: layers' shares, a run's readings
HOLLOW = ("masked",)  # drawn as outlines, since it lies under others most of the time


def looks(models: Sequence[str]) -> dict[str, tuple]:
    """Model -> colour, marker, dashes; "retrained 2" looks as "retrained", other names take turns."""
    found, others = {}, 0
    for name in models:
        role = role_of(name)
        if role in ROLES:
            found[name] = ROLES[role]
        else:
            found[name] = (BESIDE[others % len(BESIDE)], MARKERS[others % len(MARKERS)], "-")
            others += 1
    return found


def role_of(name: str) -> str:
    """The model's name without the number of a retrained one."""
    head, _, number = name.rpartition(" ")
    return head if head == "retrained" and number.isdigit() else name


def dot_options(name: str, look: tuple, size: float = 7.0) -> dict:
    """Options of ``Axes.plot`` for one model's dots without a line."""
    colour, marker, _ = look
    fill = "white" if name in HOLLOW else colour
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": size,
        "markeredgecolor": colour,
        "markerfacecolor": fill,
        "markeredgewidth": 1.3,
    }


def plain(text: object, most: int = 40) -> str:
    """A label as one line without mathematics: ``$`` would start a formula, a leading ``_`` hide a legend entry."""
    line = " ".join(str(text).split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


def numbers(values: Sequence) -> np.ndarray:
    """Values as float64, None as nan, which is not drawn."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def new_figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches, that keeps its texts apart by itself."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=TITLE, color=INK, fontweight="bold", x=0.01, ha="left")
    return figure


def dress(axes: Axes, x: str = "", y: str = "", title: str = "") -> Axes:
    """Axis titles with units, light grid, no frame above and to the right."""
    axes.set_xlabel(x, fontsize=TEXT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT, color=INK)
    if title:
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left")
    axes.tick_params(labelsize=SMALL, colors=INK, which="both")
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def legend(figure: Figure, entries: dict[str, Artist]) -> None:
    """One legend for the whole picture, below it, where it can hide no data; as many columns as surely fit, and the
    picture as much higher as more than two lines of it need."""
    widest = 0.6 + 0.078 * max(map(len, entries))  # inches: handle and gap, and one character at this size
    columns = max(1, min(4, int(figure.get_figwidth() / widest)))
    lines = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, lines - 2))
    figure.legend(
        list(entries.values()),
        [plain(text, 60) for text in entries],
        loc="outside lower left",
        ncols=min(columns, len(entries)),
        fontsize=SMALL,
        frameon=False,
        handlelength=2.4,
    )
