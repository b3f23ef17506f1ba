"""How the models behave beside each other: membership, relearning, where they look, accuracy by class."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..findings import Findings
from ..tables import Rows, evaluated
from . import style

LAYERS = {"masked": 2.2, "retrained": 2.5, "unlearned": 4}  # what lies above what
MAPS_A_ROW = 5
GOAL = 0.95  # of the original's accuracy, as in relearn_steps
PANELS = {"forget": "fine-tuned on forget images", "mixed": "fine-tuned on forget and retained images"}

Curve = tuple[np.ndarray, np.ndarray]
COMPARED = ("original", "unlearned", "retrained")
ALL_SHOWN = 30  # classes, each with a row of its own
SHADE = "#f6e3d6"
MOST_FORGOTTEN, MOST_CHANGED = 10, 16  # rows where there are more classes


def draw_curves(axes: Axes, lines: Mapping[str, Curve], entries: dict[str, Line2D], texts: Mapping[str, str]) -> None:
    """One line a model; ``entries`` gathers one legend entry a role, under the text given for it."""
    for name, look in style.looks(lines).items():
        role = style.role_of(name)
        width = 1.1 if name != role else 2.4 if role == "unlearned" else 1.8
        options: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "zorder": LAYERS.get(role, 3)}
        if role not in style.ROLES:  # colours repeat among the models beside
            options |= {"marker": look.marker, "markersize": 5}
        axes.plot(*lines[name], **options, linewidth=width, markevery=max(1, len(lines[name][0]) // 7))
        entries[texts[role]] = Line2D([], [], **options, linewidth=max(width, 1.6))


def described(names: Iterable[str]) -> dict[str, str]:
    """Role -> its text in a legend, which says how many retrained models there are."""
    roles = list(map(style.role_of, names))
    count = roles.count("retrained")
    return {role: f"{role} ({count} models)" if role == "retrained" and count > 1 else role for role in roles}


def membership_roc(report: Findings) -> Figure | None:
    """ROC of the loss attack that tells forget images from test images of their classes, on plain and on logarithmic
    axes, where few false alarms are seen. None where no model has one."""
    rocs = {name: roc for name in style.order(report.rocs) if (roc := report.rocs[name])}
    if not rocs:
        return None
    figure = style.new_figure("Can an attacker tell the forget images from unseen ones? On the diagonal: no", 4.3)
    whole, low = figure.subplots(1, 2)
    lines = {name: (style.numbers(roc["fpr"]), style.numbers(roc["tpr"])) for name, roc in rocs.items()}
    texts, entries = described(rocs), dict[str, Line2D]()
    for role, row in evaluated(report).items():
        if role in texts and row.get("mia_loss_auc") is not None:
            texts[role] += f": area {row['mia_loss_auc']:.3f}"
    for axes in (whole, low):
        axes.plot([0.001, 1], [0.001, 1], **style.DOTTED)
        draw_curves(axes, lines, entries, texts)
    style.dress(whole, "false alarms: unseen images called members", "forget images called members", percent="xy")
    style.dress(low, "the same, few false alarms (logarithmic)")
    least = min(fpr[fpr > 0].min() for fpr, _ in lines.values())
    low.set_xscale("log")
    low.set_yscale("log", nonpositive="clip")
    low.set_xlim(least, 1)
    low.set_ylim(least / 2, 1.15)
    for axis in (low.xaxis, low.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.legend(figure, entries | {"chance": Line2D([], [], **style.DOTTED)})
    return figure


def relearning(report: Findings) -> Figure | None:
    """Accuracy on forgotten classes while each model is fine-tuned: on forget images alone, and at level full on forget
    and retained images together. The masked model has the original's weights, so its curve is drawn once."""
    curves = {name: report.relearning[name] for name in style.order(report.relearning)}
    if not curves:
        return None
    kinds = [kind for kind in PANELS if any(kind in curve for curve in curves.values())]
    figure = style.new_figure("How fast does the forgotten come back? Slowly, as in retrained models?", 4.2)
    texts, entries = described(curves), dict[str, Line2D]()
    if "masked" in curves and curves["masked"] == curves.get("original"):
        del curves["masked"]
        texts["original"] = "original, and masked (the same weights)"
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        held = {name: curve[kind] for name, curve in curves.items() if kind in curve}
        lines = {name: (style.numbers(curve["step"]), style.numbers(curve["acc_ut"])) for name, curve in held.items()}
        draw_curves(axes, lines, entries, texts)
        if kind == "forget" and "original" in lines:
            axes.axhline(GOAL * lines["original"][1][0], **style.DOTTED)
            entries[f"{GOAL:.0%} of the original's accuracy"] = Line2D([], [], **style.DOTTED)
        style.dress(axes, "steps of fine-tuning", "", PANELS[kind], percent="y")
        axes.set_ylim(-0.03, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[0].set_ylabel("accuracy on forgotten classes", fontsize=style.TEXT, color=style.INK)
    style.legend(figure, entries)
    return figure


def heatmaps(report: Findings) -> Figure | None:
    """Mean GradCAM map of each model over forgotten-class test images, all on one colour scale; no image is shown.
    None below level full."""
    maps = {name: np.array(report.heatmaps[name], dtype=np.float64) for name in style.order(report.heatmaps)}
    if not maps:
        return None
    columns = min(MAPS_A_ROW, len(maps))
    rows = -(-len(maps) // columns)
    height = 0.75 + rows * (0.3 + min(2.6, (style.WIDTH - 1.2) / columns))
    figure = style.new_figure("Where do the models look for the forgotten classes? Brighter: more evidence", height)
    panels = figure.subplots(rows, columns, squeeze=False)
    scale = Normalize(0, max(np.nanmax(values) for values in maps.values()) or 1)
    for axes, (name, values) in zip(panels.flat, maps.items(), strict=False):
        axes.imshow(values, cmap="viridis", norm=scale)
        style.picture(axes, name)
    for axes in panels.flat[len(maps) :]:
        axes.set_axis_off()
    style.colour_bar(figure, panels, ScalarMappable(scale, "viridis"), "GradCAM, in logits", 0.85)
    return figure


def accuracy_per_class(report: Findings) -> Figure | None:
    """Test accuracy of each class, forgotten ones first and shaded; beyond 30 classes the forgotten ones, those that
    changed most, and above them every retained class's change in order of size. None without two evaluated models."""
    models = evaluated(report)
    rows = {name: models[name]["per_class"] for name in COMPARED if models.get(name, {}).get("per_class")}
    rows = {name: {str(label): a for label, a in row.items()} for name, row in rows.items()}
    if not {"original", "unlearned"} <= set(rows):
        return None
    gone = [label for label in (str(c["label"]) for c in report.forget_classes) if label in rows["original"]]
    kept = [label for label in rows["original"] if label not in set(gone)]
    many, chosen = len(gone) + len(kept) > ALL_SHOWN, [*gone, *kept]
    if many:
        first = np.argsort(-np.abs(changes(rows, "unlearned", kept)), kind="stable")[:MOST_CHANGED]
        chosen = gone[:MOST_FORGOTTEN] + [kept[i] for i in first]
    row = 0.26 if many else 0.32
    count = f"{len(chosen)} of {len(gone) + len(kept)}" if many else "all"
    figure = style.new_figure(
        f"Test accuracy of {count} classes, before and after", 1.4 + row * len(chosen) + 2.4 * many
    )
    shares = [1.9, row * len(chosen)] if many else [1]
    panels = figure.subplots(len(shares), 1, height_ratios=shares, squeeze=False)[:, 0]
    if many:
        draw_changes(panels[0], rows, kept)
    draw_rows(panels[-1], rows, chosen, gone, many)
    entries: dict[str, Artist] = {name: Line2D([], [], **style.dot_options(name, style.ROLES[name])) for name in rows}
    if gone:
        entries["forgotten classes"] = Patch(color=SHADE)
    style.legend(figure, entries)
    return figure


def changes(rows: Rows, name: str, labels: Sequence[str]) -> np.ndarray:
    """A model's accuracy less the original's, by class; nan where one of them has none."""
    after, before = (style.numbers([rows[model].get(k) for k in labels]) for model in (name, "original"))
    return after - before


def draw_rows(axes: Axes, rows: Rows, chosen: Sequence[str], gone: Sequence[str], many: bool) -> None:
    """One line a class, one dot a model, each model a little lower so that none hides another."""
    places = np.arange(len(chosen))
    for name, offset in zip(rows, np.linspace(-0.27, 0.27, len(rows)), strict=True):
        options = style.dot_options(name, style.ROLES[name], 6)
        axes.plot(style.numbers([rows[name].get(k) for k in chosen]), places + offset, **options)
    shaded = sum(label in set(gone) for label in chosen)
    if shaded:
        axes.axhspan(-0.5, shaded - 0.5, color=SHADE, zorder=0)
    title = f"{shaded} of {len(gone)} forgotten classes, and the retained ones that changed most" if many else ""
    style.dress(axes, "test accuracy", "", title, percent="x")
    axes.set_yticks(places, [style.plain(label, 30) for label in chosen])
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)


def draw_changes(axes: Axes, rows: Rows, kept: Sequence[str]) -> None:
    """Each model's changes over the retained classes, sorted for itself: how many lose, how many gain."""
    for name in ("retrained", "unlearned"):
        if name in rows:
            change = changes(rows, name, kept)
            change = np.sort(change[np.isfinite(change)])
            axes.plot(np.arange(1, len(change) + 1), change, color=style.ROLES[name].colour, linestyle="-", linewidth=2)
    axes.axhline(0, color=style.INK, linewidth=0.8)
    style.dress(axes, "retained classes, sorted by change for each model", "change of accuracy,\npercentage points")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
