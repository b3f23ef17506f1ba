"""The report as text: a short table of models by scores, and the whole one of scores by models."""

from collections.abc import Sequence
from typing import NamedTuple

from ..metrics import AS_RETRAINED, CLOSEST, HIGHER, LOWER, METRICS
from .findings import Findings

Rows = dict[str, dict]  # model -> score -> value

SUMMARY = ("acc_rt", "acc_ut", "acc_views", "js_ut", "recovery_5", "relearn", "probe_auc", "seconds")
# Where a score's name is not its title.
TITLES = {"acc_views": "views", "js_ut": "JS to retrained", "recovery_5": "recovery", "probe_auc": "probe"}
NO_CANDIDATE = ("original", "retrained")  # what others are measured against
GROUPS = {
    "accuracy": ("unlearning_accuracy",),
    "membership": ("membership_svm", "membership_loss", "rmia", "u_lira", "mia_nn"),
    "distance to retrained": ("divergence", "heatmap_similarity"),
    "depth": ("prototype_recovery", "dispersion", "linear_probe", "relearning"),
    "beside the forget images": ("over_unlearning",),
    "summary": ("gap_to_retrained", "forgetting_quality", "backdoor_accuracy"),
}
OLDER = "the report is of a version that did not compute it"
LEGEND = "↑ higher, ↓ lower, → closest to the retrained model is better. * best; +-: difference from retrained."


class Cell(NamedTuple):
    """One model's value of one score, its difference from the retrained model's, and whether it is the best."""

    value: float | None
    gap: float | None
    best: bool

    def __str__(self) -> str:
        """The value to four digits, the difference to three, * for the best."""
        gap = "" if self.gap is None else f" {self.gap:+.3f}"
        return "-" if self.value is None else f"{'*' if self.best else ''}{self.value:z.4f}{gap}"


class Line(NamedTuple):
    """One score of every model; ``reason``: why none has it, else empty."""

    score: str
    cells: dict[str, Cell]
    tolerance: float | None
    reason: str


def evaluated(report: Findings) -> Rows:
    """The report's rows that are filled."""
    return {name: row for name, row in report.models.items() if row}


def summary_columns(rows: Rows) -> list[tuple[str, str]]:
    """Score and title of each score of SUMMARY that somebody has."""
    known = [key for key in SUMMARY if any(row.get(key) is not None for row in rows.values())]
    return [(key, TITLES.get(key, key)) for key in known]


def summary_table(rows: Rows) -> str:
    """Named rows by the scores of SUMMARY that somebody has."""
    columns = summary_columns(rows)
    body = []
    for name, row in rows.items():
        values = ((row.get(key), ".1f" if key == "seconds" else "z.4f") for key, _ in columns)
        body.append([name, *(f"{'-' if value is None else format(value, form):>8}" for value, form in values)])
    return "\n".join(aligned(["model", *(f"{title:>8}" for _, title in columns)], body))


def best_of(score: str, rows: Rows) -> list[str]:
    """The models with the best value: highest, lowest or closest to retrained; original and retrained do not compete.
    Empty where fewer than two have one."""
    known = {name: row.get(score) for name, row in rows.items() if name not in NO_CANDIDATE}
    values = {name: value for name, value in known.items() if value is not None}
    target, direction = rows.get("retrained", {}).get(score), METRICS[score].direction
    if len(values) < 2 or (direction == CLOSEST and target is None):
        return []
    cost = {HIGHER: lambda v: -v, LOWER: lambda v: v, CLOSEST: lambda v: abs(v - target)}[direction]
    least = min(map(cost, values.values()))
    return [name for name, value in values.items() if cost(value) <= least + 5e-5]


def graded(report: Findings) -> dict[str, list[Line]]:
    """Group -> a line for each of its scores, those without a value too."""
    rows = evaluated(report)

    def line(score: str) -> Line:
        target, best, cells = rows.get("retrained", {}).get(score), best_of(score, rows), {}
        for name, row in rows.items():
            value = row.get(score)
            gap = None if value is None or target is None or name == "retrained" else value - target
            cells[name] = Cell(value, gap, name in best)
        older = "" if any(score in row for row in rows.values()) else OLDER
        return Line(score, cells, report.tolerance(score), report.reasons.get(score, older))

    return {
        group: [line(score) for score, known in METRICS.items() if known.module in modules]
        for group, modules in GROUPS.items()
    }


def judged(report: Findings) -> bool:
    """Whether there are verdicts on the unlearned model."""
    return any(report.verdicts.get("unlearned", {}).values())


def score_table(report: Findings) -> str:
    """Scores by models, in groups; those that no model has in the notes below."""
    verdicts = report.verdicts["unlearned"] if judged(report) else None
    head = ["score", *evaluated(report), *(["floor", "verdict on unlearned"] if verdicts else [])]
    body: list[list[str] | str] = []
    for group, graded_lines in graded(report).items():
        lines = [line for line in graded_lines if not line.reason]
        body += [group] if lines else []
        for line in lines:
            texts = [line.score + arrow(line.score), *map(str, line.cells.values())]
            if verdicts:
                texts.append("-" if line.tolerance is None else f"±{line.tolerance:.4f}")
                texts.append((verdicts.get(line.score) or "-") + ("  (!)" if METRICS[line.score].caveat else ""))
            body.append(texts)
    return "\n".join([*aligned(head, body), "", *notes(report)])


def arrow(score: str) -> str:
    """A score's direction as a sign, with a space before it."""
    return {HIGHER: " ↑", LOWER: " ↓", CLOSEST: " →"}[METRICS[score].direction]


def aligned(head: list[str], body: Sequence[list[str] | str]) -> list[str]:
    """Rows of cells as lines of equal columns; a string stands on a line of its own."""
    cells = [head, *(line for line in body if not isinstance(line, str))]
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))

    def pad(line: list[str]) -> str:
        rest = (f"{text:>{width}}" for text, width in zip(line[1:], widths, strict=True))
        return "  ".join([f"{line[0]:<{first}}", *rest]).rstrip()

    return [pad(head), *(f"-- {line}" if isinstance(line, str) else pad(line) for line in body)]


def notes(report: Findings) -> list[str]:
    """What the marks mean, what the masked model passes for free, what is missing and why."""
    free = [masked_sentence(report)] if "masked" in evaluated(report) else []
    lacking = [f"{name}: {reason}." for name, reason in report.row_reasons.items()]
    return [LEGEND, *free, *missing_verdicts(report), *caveats(report), *missing_scores(report), *lacking]


def missing_verdicts(report: Findings) -> list[str]:
    """The sentence that says why there are no verdicts, or how far they hold."""
    if report.retrained_models >= 3:
        return ["Floors hold for 95 in 100 retrained models: of thirty scores one or two lie outside by chance."]
    given = ["no retrained model", "one retrained model", "two retrained models"][report.retrained_models]
    return [f"No verdicts: {given} given; three show how much such models differ."]


def caveats(report: Findings) -> list[str]:
    """Where the calibration of a score that stands in the table failed."""
    marked = {score: known.caveat for score, known in METRICS.items() if score not in report.reasons}
    return [f"(!) {score}: {caveat}" for score, caveat in marked.items() if caveat]


def missing_scores(report: Findings) -> list[str]:
    """What no model has and why, a sentence for each reason, and which test images were left out."""
    reasons: dict[str, list[str]] = {}
    out = report.left_out_tests
    told = [f"Left out, as images to forget, pixel by pixel: {out} test image{'' if out == 1 else 's'}."] * bool(out)
    for score, reason in report.reasons.items():
        reasons.setdefault(reason, []).append(score)
    return told + [f"Not computed, {reason}: {', '.join(scores)}." for reason, scores in reasons.items()]


def masked_sentence(report: Findings) -> str:
    """One sentence on the scores that the masked model passes for free: measured where there are verdicts, else as on
    the data of the calibration."""
    verdicts, start = (
        report.verdicts.get("masked", {}),
        "The masked model, which changes no weight and forgets nothing,",
    )
    if any(verdicts.values()):
        free = [score for score, verdict in verdicts.items() if verdict == AS_RETRAINED]
        return f"{start} passes for free (as retrained here): {', '.join(free)}."
    free = [score for score, known in METRICS.items() if known.masked_passes and score not in report.reasons]
    return f"{start} passes for free: {', '.join(free)}."
