"""The report as text: a short table of models by scores, and the whole one of scores by models."""

from __future__ import annotations

from dataclasses import dataclass

from ..metrics import CLOSEST, HIGHER, LOWER, METRICS

SUMMARY = {  # score -> column title
    "acc_rt": "acc_rt",
    "acc_ut": "acc_ut",
    "acc_views": "views",
    "js_ut": "JS to retrained",
    "relearn": "relearn",
    "probe_auc": "probe",
    "seconds": "seconds",
}
NO_CANDIDATE = ("original", "retrained")  # what others are measured against
GROUPS = {
    "accuracy": ("unlearning_accuracy",),
    "membership": ("membership_svm", "membership_loss", "rmia", "u_lira", "mia_nn"),
    "distance to retrained": ("divergence", "heatmap_similarity"),
    "depth": ("linear_probe", "relearning"),
    "summary": ("gap_to_retrained", "forgetting_quality", "backdoor_accuracy"),
}


@dataclass(frozen=True)
class Cell:
    """One model's value of one score, its difference from the retrained model's, and whether it is the best."""

    value: float | None
    gap: float | None
    best: bool


@dataclass(frozen=True)
class Line:
    """One score of every model; ``reason``: why none has it, else empty."""

    score: str
    cells: dict[str, Cell]
    tolerance: float | None
    reason: str


def evaluated(report) -> dict[str, dict]:
    """The report's rows that are filled."""
    return {name: row for name, row in report.models.items() if row}


def summary_columns(rows: dict[str, dict]) -> list[tuple[str, str]]:
    """Score and title of each score of SUMMARY that somebody has."""
    return [(key, title) for key, title in SUMMARY.items() if any(row.get(key) is not None for row in rows.values())]


def summary_table(rows: dict[str, dict]) -> str:
    """Named rows by the scores of SUMMARY that somebody has."""
    columns = summary_columns(rows)
    width = max([len("model"), *map(len, rows)])
    lines = ["  ".join([f"{'model':<{width}}", *(f"{title:>{max(8, len(title))}}" for _, title in columns)])]
    for name, row in rows.items():
        cells = []
        for key, title in columns:
            value, size = row.get(key), max(8, len(title))
            text = "-" if value is None else f"{value:.1f}" if key == "seconds" else f"{value:z.4f}"
            cells.append(f"{text:>{size}}")
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def best_of(score: str, rows: dict[str, dict]) -> list[str]:
    """The models with the best value: highest, lowest or closest to retrained; original and retrained do not compete.
    Empty where fewer than two have one."""
    values = {name: row[score] for name, row in rows.items() if name not in NO_CANDIDATE and row[score] is not None}
    target = (rows.get("retrained") or {}).get(score)
    direction = METRICS[score].direction
    if len(values) < 2 or (direction == CLOSEST and target is None):
        return []
    cost = {HIGHER: lambda v: -v, LOWER: lambda v: v, CLOSEST: lambda v: abs(v - target)}[direction]
    least = min(map(cost, values.values()))
    return [name for name, value in values.items() if cost(value) <= least + 5e-5]


def graded(report) -> dict[str, list[Line]]:
    """Group -> a line for each of its scores, those without a value too."""
    rows = evaluated(report)
    groups: dict[str, list[Line]] = {}
    for group, modules in GROUPS.items():
        groups[group] = lines = []
        for score in (s for s, known in METRICS.items() if known.module in modules):
            target = (rows.get("retrained") or {}).get(score)
            best = best_of(score, rows)
            cells = {}
            for name, row in rows.items():
                value = row[score]
                no_gap = value is None or target is None or name == "retrained"
                cells[name] = Cell(value, None if no_gap else value - target, name in best)
            tolerance = (report.floors.get(score) or {}).get("tolerance")
            lines.append(Line(score, cells, tolerance, report.reasons.get(score, "")))
    return groups


def judged(report) -> bool:
    """Whether there are verdicts on the unlearned model."""
    return any(report.verdicts.get("unlearned", {}).values())


def cell_text(cell: Cell) -> str:
    """The value to four digits, the difference to three, * for the best."""
    if cell.value is None:
        return "-"
    return f"{'*' if cell.best else ''}{cell.value:z.4f}{'' if cell.gap is None else f' {cell.gap:+.3f}'}"


def score_table(report) -> str:
    """Scores by models, in groups."""
    verdicts = report.verdicts["unlearned"] if judged(report) else None
    head = ["score", *evaluated(report), *(["floor", "verdict on unlearned"] if verdicts else [])]
    body: list[list[str] | str] = []
    for group, lines in graded(report).items():
        lines = [line for line in lines if not line.reason]
        if lines:
            body.append(group)
        for line in lines:
            texts = [line.score + arrow(line.score), *map(cell_text, line.cells.values())]
            if verdicts:
                texts.append("-" if line.tolerance is None else f"±{line.tolerance:.4f}")
                texts.append((verdicts.get(line.score) or "-") + ("  (!)" if METRICS[line.score].caveat else ""))
            body.append(texts)
    return "\n".join([*aligned(head, body), "", *notes(report)])


def arrow(score: str) -> str:
    return {HIGHER: " ↑", LOWER: " ↓", CLOSEST: " →"}[METRICS[score].direction]


def aligned(head: list[str], body: list[list[str] | str]) -> list[str]:
    """Rows of cells as lines of equal columns; a string stands on a line of its own."""
    table = [head, *(line for line in body if not isinstance(line, str))]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]

    def pad(line: list[str]) -> str:
        cells = (f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([f"{line[0]:<{widths[0]}}", *cells]).rstrip()

    return [pad(head), *(f"-- {line}" if isinstance(line, str) else pad(line) for line in body)]


MARKS = "↑ higher, ↓ lower, → closest to the retrained model is better. * best; +-: difference from retrained."


def notes(report) -> list[str]:
    """What the marks mean, what the masked model passes for free, what is missing and why."""
    missing = [f"Not computed, {reason}: {', '.join(scores)}." for reason, scores in missing_scores(report).items()]
    missing += [f"{name}: {reason}." for name, reason in report.row_reasons.items()]
    free = [masked_sentence(report)] if "masked" in evaluated(report) else []
    return [MARKS, *free, *missing_verdicts(report), *caveats(report), *missing]


def missing_verdicts(report) -> list[str]:
    """The sentence that says why there are no verdicts, or none."""
    if report.retrained_models >= 3:
        return ["Floors hold for 95 in 100 retrained models: of thirty scores one or two lie outside by chance."]
    given = ["no retrained model", "one retrained model", "two retrained models"][report.retrained_models]
    return [f"No verdicts: {given} given; three show how much such models differ."]


def caveats(report) -> list[str]:
    """Where the calibration of a score that stands in the table failed."""
    return [
        f"(!) {score}: {row.caveat}" for score, row in METRICS.items() if row.caveat and score not in report.reasons
    ]


def missing_scores(report) -> dict[str, list[str]]:
    """Reason -> the scores that no model has."""
    reasons: dict[str, list[str]] = {}
    for score, reason in report.reasons.items():
        reasons.setdefault(reason, []).append(score)
    return reasons


def masked_sentence(report) -> str:
    """One sentence on the scores that the masked model passes for free: measured where there are verdicts, else as on
    the data of the calibration."""
    start = "The masked model, which changes no weight and forgets nothing, passes for free"
    verdicts = report.verdicts.get("masked", {})
    if any(verdicts.values()):
        return (
            f"{start} (as retrained here): {', '.join(s for s, found in verdicts.items() if found == 'as retrained')}."
        )
    free = [score for score, line in METRICS.items() if line.masked_passes and score not in report.reasons]
    return f"{start}: {', '.join(free)}."
