"""The handful of scores that a sceptic asks for first, on one scale from retrained to original."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...evaluation.floors import LEAST_TOLERANCE
from ...metrics import HIGHER, LOWER, METRICS
from .behaviour import order
from .style import SMALL, dot_options, dress, legend, looks, new_figure, plain

SHOWN = {  # score -> in words
    "acc_rt": "accuracy, retained classes",
    "acc_ut": "accuracy, forgotten classes",
    "acc_views": "accuracy, crops of forget images",
    "mia_confidence": "membership, confidence",
    "mia_loss_auc": "membership, loss",
    "rmia_auc": "membership, RMIA",
    "js_ut": "distance from retrained, JS",
    "gradcam_similarity": "where it looks, GradCAM",
    "probe_auc": "class found in features",
    "relearn": "relearning",
    "relearn_mixed": "relearning, mixed images",
}
LEFT, RIGHT = -0.75, 1.5  # beyond, a dot stands at the edge as an arrow
FLOOR, UNSURE = "#bfe8da", "#ececec"


def forgetting_scores(report) -> Figure | None:
    """Each model between the retrained ones (0) and the original (1), one line a score, with the floor shaded in which
    one more retrained model would fall. Without a retrained model the scores as they are. None before evaluation."""
    rows = {name: report.models[name] for name in order(report.models) if report.models[name]}
    if not {"original", "unlearned"} <= set(rows):
        return None
    if report.retrained_models:
        ends = {score: span(score, rows) for score in SHOWN}
        ends = {score: pair for score, pair in ends.items() if pair}
    else:
        ends = {score: (0.0, 1.0) for score in SHOWN if all(row.get(score) is not None for row in rows.values())}
    if not ends:
        return None
    title = "Between retrained (left: forgotten) and original (right: not forgotten)"
    if not report.retrained_models:
        title = "What the models score; without a retrained model nothing says what is right"
    figure = new_figure(title, 1.9 + (0.27 + 0.045 * len(rows)) * len(ends))
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[2.0, 1.0]) if report.retrained_models else None
    axes = panels[0] if report.retrained_models else figure.subplots()
    unsure = draw_floors(axes, report, ends)
    models = [name for name in rows if name not in ("original", "retrained") or not report.retrained_models]
    entries = {}
    reach = 0.3 if len(models) > 2 else 0.18  # of a line, so that none hides another
    shifts = np.linspace(-reach, reach, len(models))
    for (name, look), shift in zip(looks(models).items(), shifts, strict=True):
        draw_model(axes, name, look, rows[name], ends, shift)
        entries[name] = Line2D([], [], **dot_options(name, look))
    if report.retrained_models:
        draw_scale(axes)
        draw_values(panels[1], rows, ends)
        if any(tolerance(report, score) is not None for score in ends):
            entries["how far retrained models differ"] = Patch(color=FLOOR)
        if unsure:
            entries["so far that the original is within"] = Patch(color=UNSURE)
    dress(axes, "" if report.retrained_models else "score")
    axes.set_yticks(range(len(ends)), [SHOWN[score] for score in ends])
    axes.set_ylim(len(ends) - 0.5, -0.5)
    legend(figure, entries)
    return figure


def span(score: str, rows: dict[str, dict]) -> tuple[float, float] | None:
    """The retrained and the original model's value; None where they are missing, or the same but for what is
    never evidence.

    A single retrained model has no distance from another one: its distance from itself, 0, or likeness, 1, stands.
    """
    first, target = rows["original"].get(score), (rows.get("retrained") or {}).get(score)
    if target is None and METRICS[score].module in ("divergence", "heatmap_similarity"):
        target = {LOWER: 0.0, HIGHER: 1.0}[METRICS[score].direction]
    if first is None or target is None or abs(first - target) <= LEAST_TOLERANCE:
        return None
    return target, first


def tolerance(report, score: str) -> float | None:
    return (report.floors.get(score) or {}).get("tolerance")


def position(value: float, ends: tuple[float, float]) -> float:
    """0 at the retrained model's value, 1 at the original's."""
    return (value - ends[0]) / (ends[1] - ends[0])


def draw_floors(axes: Axes, report, ends: dict[str, tuple]) -> bool:
    """The band around the retrained models, clipped at the picture's edge, and grey where it holds the original too;
    returns whether one does."""
    unsure = False
    for place, (score, pair) in enumerate(ends.items()):
        known = tolerance(report, score)
        if known is not None and report.retrained_models:
            half = known / abs(pair[1] - pair[0])
            low, high = max(-half, LEFT), min(half, RIGHT)
            axes.barh(place, high - low, left=low, height=0.86, color=UNSURE if half >= 1 else FLOOR, zorder=1)
            unsure |= half >= 1
    return unsure


def draw_model(axes: Axes, name: str, look: tuple, row: dict, ends: dict[str, tuple], shift: float) -> None:
    """One model's dots, a little lower than the model's before; beyond the scale an arrow at its edge."""
    dots, arrows = [], []
    for place, (score, pair) in enumerate(ends.items()):
        if row.get(score) is None:
            continue
        x = position(row[score], pair)
        (dots if LEFT <= x <= RIGHT else arrows).append((float(np.clip(x, LEFT, RIGHT)), place + shift))
    size = 7.5 if name == "unlearned" else 6.0
    if dots:
        axes.plot(*zip(*dots, strict=True), **dot_options(name, look, size), zorder=4, label=plain(name))
    for x, place in arrows:
        options = dot_options(name, look, size) | {"marker": "<" if x <= LEFT else ">"}
        axes.plot([x], [place], **options, zorder=4, clip_on=False)


def draw_scale(axes: Axes) -> None:
    """Lines at both ends of the scale."""
    for x, name in ((0, "retrained"), (1, "original")):
        axes.axvline(x, color=looks([name])[name][0], linewidth=1.8, zorder=2)
    axes.set_xlim(LEFT, RIGHT)
    axes.set_xticks([0, 1], ["retrained", "original"])


def draw_values(axes: Axes, rows: dict[str, dict], ends: dict[str, tuple]) -> None:
    """The numbers behind the dots, a column a model."""
    axes.set_axis_off()
    for x, name in ((0.14, "retrained"), (0.5, "unlearned"), (0.86, "original")):
        axes.text(x, -0.75, name, fontsize=SMALL, color=looks([name])[name][0], ha="center", va="bottom")
        for place, (score, pair) in enumerate(ends.items()):
            value = {"retrained": pair[0], "original": pair[1]}.get(name, rows["unlearned"].get(score))
            text = "-" if value is None else f"{value:.3f}"
            axes.text(x, place, text, fontsize=SMALL, ha="center", va="center")
