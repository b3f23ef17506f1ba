"""The handful of scores that a sceptic asks for first, on one scale from retrained to original."""

from collections.abc import Mapping

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...metrics import HIGHER, LEAST_TOLERANCE, LOWER, METRICS
from ..findings import Findings
from ..tables import Rows, evaluated
from .style import ROLES, SMALL, Look, dot_options, dress, legend, looks, new_figure, order, plain

SHOWN = {  # score -> in words
    "acc_rt": "accuracy, retained classes",
    "acc_ut": "accuracy, forgotten classes",
    "acc_views": "accuracy, crops of forget images",
    "mia_confidence": "membership, confidence",
    "mia_loss_auc": "membership, loss",
    "rmia_auc": "membership, RMIA",
    "js_ut": "distance from retrained, JS",
    "gradcam_similarity": "where it looks, GradCAM",
    "recovery_5": "recovery from 5 images",
    "probe_auc": "class found in features",
    "relearn": "relearning",
    "relearn_mixed": "relearning, mixed images",
}
LEFT, RIGHT = -0.75, 1.5  # beyond, a dot stands at the edge as an arrow
FLOOR, UNSURE = "#bfe8da", "#ececec"
ITSELF = {LOWER: 0.0, HIGHER: 1.0}  # a single retrained model's distance from, or likeness to, itself

Ends = Mapping[str, tuple[float, float]]  # score -> the retrained and the original model's value


def forgetting_scores(report: Findings) -> Figure | None:
    """Each model between the retrained ones (0) and the original (1), one line a score, with the floor shaded in which
    one more retrained model would fall. Without a retrained model the scores as they are. None before evaluation."""
    rows, scaled = evaluated(report), bool(report.retrained_models)
    rows = {name: rows[name] for name in order(rows)}
    if not {"original", "unlearned"} <= set(rows):
        return None
    ends = {score: span(score, rows) for score in SHOWN} if scaled else {}
    shown = {score: pair for score, pair in ends.items() if pair is not None}
    title = "Between retrained (left: forgotten) and original (right: not forgotten)"
    if not scaled:
        shown = {s: (0.0, 1.0) for s in SHOWN if all(row.get(s) is not None for row in rows.values())}
        title = "What the models score; without a retrained model nothing says what is right"
    if not shown:
        return None
    figure = new_figure(title, 1.9 + (0.27 + 0.045 * len(rows)) * len(shown))
    axes, *beside = figure.subplots(1, 2, sharey=True, width_ratios=[2.0, 1.0]) if scaled else [figure.subplots()]
    models = [name for name in rows if name not in ("original", "retrained") or not scaled]
    entries: dict[str, Artist] = {}
    reach = 0.3 if len(models) > 2 else 0.18  # of a line, so that none hides another
    for (name, look), shift in zip(looks(models).items(), np.linspace(-reach, reach, len(models)), strict=True):
        draw_model(axes, name, look, rows[name], shown, shift)
        entries[name] = Line2D([], [], **dot_options(name, look))
    if scaled:
        draw_values(beside[0], rows, shown)
        halves = draw_scale(axes, report, shown)
        if halves:
            entries["how far retrained models differ"] = Patch(color=FLOOR)
        if any(half >= 1 for half in halves):
            entries["so far that the original is within"] = Patch(color=UNSURE)
    dress(axes, "" if scaled else "score")
    axes.set_yticks(range(len(shown)), [SHOWN[score] for score in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    legend(figure, entries)
    return figure


def span(score: str, rows: Rows) -> tuple[float, float] | None:
    """The retrained and the original model's value; None where they are missing, or the same but for what is
    never evidence."""
    first, target = rows["original"].get(score), rows.get("retrained", {}).get(score)
    if target is None and METRICS[score].module in ("divergence", "heatmap_similarity"):
        target = ITSELF[METRICS[score].direction]
    if first is None or target is None or abs(first - target) <= LEAST_TOLERANCE:
        return None
    return target, first


def draw_scale(axes: Axes, report: Findings, ends: Ends) -> list[float]:
    """Lines at both ends of the scale, and the band around the retrained models, clipped at the picture's edge, and
    grey where it holds the original too; returns the bands' half-widths, 1 the distance to the original."""
    for x, name in enumerate(("retrained", "original")):
        axes.axvline(x, color=ROLES[name].colour, linewidth=1.8, zorder=2)
    axes.set_xlim(LEFT, RIGHT)
    axes.set_xticks([0, 1], ["retrained", "original"])
    halves = []
    for place, (score, (target, first)) in enumerate(ends.items()):
        if (tolerance := report.tolerance(score)) is not None:
            halves.append(half := tolerance / abs(first - target))
            low, high = max(-half, LEFT), min(half, RIGHT)
            axes.barh(place, high - low, left=low, height=0.86, color=UNSURE if half >= 1 else FLOOR, zorder=1)
    return halves


def draw_model(axes: Axes, name: str, look: Look, row: Mapping[str, float | None], ends: Ends, shift: float) -> None:
    """One model's dots, a little lower than the model's before; beyond the scale an arrow at its edge."""
    options = dot_options(name, look, 7.5 if name == "unlearned" else 6.0) | {"zorder": 4}
    dots: list[tuple[float, float]] = []
    for place, (score, (target, first)) in enumerate(ends.items()):
        if (value := row.get(score)) is None:
            continue
        x = (value - target) / (first - target)
        if LEFT <= x <= RIGHT:
            dots.append((x, place + shift))
        else:
            arrow = options | {"marker": "<" if x < LEFT else ">"}
            axes.plot([np.clip(x, LEFT, RIGHT)], [place + shift], **arrow, clip_on=False)
    if dots:
        axes.plot(*zip(*dots, strict=True), **options, label=plain(name))


def draw_values(axes: Axes, rows: Rows, ends: Ends) -> None:
    """The numbers behind the dots, a column a model."""
    axes.set_axis_off()
    for x, name in ((0.14, "retrained"), (0.5, "unlearned"), (0.86, "original")):
        axes.text(x, -0.75, name, fontsize=SMALL, color=ROLES[name].colour, ha="center", va="bottom")
        for place, (score, (target, first)) in enumerate(ends.items()):
            value = {"retrained": target, "original": first}.get(name, rows["unlearned"].get(score))
            axes.text(x, place, "-" if value is None else f"{value:.3f}", fontsize=SMALL, ha="center", va="center")
