"""How the models behave beside each other: membership, relearning, where they look."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import INK, ROLES, SMALL, TEXT, WIDTH, dress, legend, looks, new_figure, numbers, plain, role_of

LAYERS = {"masked": 2.2, "retrained": 2.5, "unlearned": 4}  # what lies above what
MAPS_A_ROW = 5
GOAL = 0.95  # of the original's accuracy, as in relearn_steps


def order(names) -> list[str]:
    """Original, masked, others, unlearned, retrained: the order of the tables."""
    ranks = {"original": 0, "masked": 1, "unlearned": 3, "retrained": 4}
    return sorted(names, key=lambda name: ranks.get(role_of(name), 2))


def curves(axes: Axes, lines: dict[str, tuple], entries: dict[str, Line2D], texts: dict[str, str]) -> None:
    """One line a model; ``entries`` gathers one legend entry a role, under the text given for it."""
    for name, look in looks(list(lines)).items():
        colour, marker, style = look
        role = role_of(name)
        width = 1.1 if name != role else 2.4 if role == "unlearned" else 1.8
        options = {"color": colour, "linestyle": style, "linewidth": width, "zorder": LAYERS.get(role, 3)}
        if role not in ROLES:  # colours repeat among the models beside
            options |= {"marker": marker, "markersize": 5}
        axes.plot(*lines[name], **options, markevery=max(1, len(lines[name][0]) // 7))
        entries[texts.get(role, role)] = Line2D([], [], **options | {"linewidth": max(width, 1.6)})


def membership_roc(report) -> Figure | None:
    """ROC of the loss attack that tells forget images from test images of their classes, on plain and on logarithmic
    axes, where few false alarms are told apart. None where no model has one."""
    found = {name: report.rocs[name] for name in order(report.rocs) if report.rocs[name]}
    if not found:
        return None
    figure = new_figure("Can an attacker tell the forget images from unseen ones? On the diagonal: no", 4.3)
    plain_axes, low = figure.subplots(1, 2)
    lines = {name: (numbers(roc["fpr"]), numbers(roc["tpr"])) for name, roc in found.items()}
    texts, entries = {}, {}
    for role in dict.fromkeys(map(role_of, found)):
        area = (report.models.get(role) or {}).get("mia_loss_auc")
        texts[role] = describe(role, found) + ("" if area is None else f": area {area:.3f}")
    for axes in (plain_axes, low):
        axes.plot([0.001, 1], [0.001, 1], color=INK, linewidth=0.8, linestyle=":")
        curves(axes, lines, entries, texts)
    dress(plain_axes, "false alarms: unseen images called members", "forget images called members")
    dress(low, "the same, few false alarms (logarithmic)", "")
    for axis in (plain_axes.xaxis, plain_axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    positive = np.concatenate([fpr[fpr > 0] for fpr, _ in lines.values()])
    low.set_xscale("log")
    low.set_yscale("log", nonpositive="clip")
    low.set_xlim(positive.min(), 1)
    low.set_ylim(positive.min() / 2, 1.15)
    for axis in (low.xaxis, low.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    entries["chance"] = Line2D([], [], color=INK, linewidth=0.8, linestyle=":")
    legend(figure, entries)
    return figure


def describe(role: str, names) -> str:
    """A role's legend text: how many retrained models there are."""
    count = sum(role_of(name) == role for name in names)
    return f"{role} ({count} models)" if role == "retrained" and count > 1 else role


def relearning(report) -> Figure | None:
    """Accuracy on forgotten classes while each model is fine-tuned: on forget images alone, and at level full on forget
    and retained images together. The masked model has the original's weights, so its curve is drawn once."""
    found = {name: report.relearning[name] for name in order(report.relearning)}
    if not found:
        return None
    kinds = [kind for kind in ("forget", "mixed") if any(kind in curve for curve in found.values())]
    figure = new_figure("How fast does the forgotten come back? Slowly, as in retrained models?", 4.2)
    texts, entries = {role_of(name): describe(role_of(name), found) for name in found}, {}
    same = found.get("masked") is not None and found.get("masked") == found.get("original")
    if same:
        texts["original"] = "original, and masked (the same weights)"
    titles = {"forget": "fine-tuned on forget images", "mixed": "fine-tuned on forget and retained images"}
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        lines = {
            name: (numbers(curve[kind]["step"]), numbers(curve[kind]["acc_ut"]))
            for name, curve in found.items()
            if kind in curve and not (same and name == "masked")
        }
        curves(axes, lines, entries, texts)
        if kind == "forget" and "original" in lines:
            goal = GOAL * lines["original"][1][0]
            axes.axhline(goal, color=INK, linewidth=0.8, linestyle=":")
            entries[f"{GOAL:.0%} of the original's accuracy"] = Line2D([], [], color=INK, linewidth=0.8, linestyle=":")
        dress(axes, "steps of fine-tuning", "", titles[kind])
        axes.set_ylim(-0.03, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("accuracy on forgotten classes", fontsize=TEXT, color=INK)
    legend(figure, entries)
    return figure


def heatmaps(report) -> Figure | None:
    """Mean GradCAM map of each model over forgotten-class test images, all on one colour scale; no image is shown.
    None below level full."""
    found = {name: np.array(report.heatmaps[name], dtype=np.float64) for name in order(report.heatmaps)}
    if not found:
        return None
    columns = min(MAPS_A_ROW, len(found))
    rows = -(-len(found) // columns)
    height = 0.75 + rows * (0.3 + min(2.6, (WIDTH - 1.2) / columns))
    figure = new_figure("Where do the models look for the forgotten classes? Brighter: more evidence", height)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    scale = Normalize(0, max(np.nanmax(values) for values in found.values()) or 1)
    for axes, (name, values) in zip(panels, found.items(), strict=False):
        axes.imshow(values, cmap="viridis", norm=scale)
        axes.set_title(plain(name, 17), fontsize=TEXT, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=panels.tolist(), shrink=0.85, pad=0.02)
    bar.set_label("GradCAM, in logits", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure
