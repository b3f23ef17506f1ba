"""The report in a few plain sentences, each computed from its numbers."""

from __future__ import annotations

from collections import Counter

from ..evaluation.floors import LEAST_TOLERANCE
from ..metrics import METRICS
from .tables import (
    GROUPS,
    caveats,
    evaluated,
    judged,
    masked_sentence,
    missing_scores,
    missing_verdicts,
)

NO_CERTIFICATE = (
    "All of this is evidence about behaviour on the images that were given. It is no certificate: no test of this kind"
    " can show that every trace is gone."
)
VERDICTS = {  # verdict -> what it means
    "as retrained": "within the range in which one more retrained model would fall",
    "not forgotten": "outside of it, and nearer to the original than to the retrained models",
    "differs": "outside of it, on another side than the original",
    "cannot tell": "the original lies within that range itself, so the score cannot tell the two apart here",
}


def reading(report) -> dict[str, list[str]]:
    """Heading -> sentences; headings without a sentence are left out."""
    parts = {
        "Accuracy alone proves nothing": accuracy(report),
        "Distance from retraining": distance(report),
        "Depth": depth(report),
        "Verdicts": verdicts(report),
        "What is missing, and why": missing(report),
    }
    return {heading: sentences for heading, sentences in parts.items() if sentences}


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def accuracy(report) -> list[str]:
    """Both accuracies before and after, and what a model gets that forgot nothing."""
    rows = evaluated(report)
    if not {"original", "unlearned"} <= set(rows):
        return []
    if "masked" not in rows:
        return of_images(rows)
    masked, after = rows["masked"], rows["unlearned"]
    known = after["acc_ut"] is not None
    sentences = []
    if known:
        sentences.append(f"Test accuracy on forgotten classes: {percent(after['acc_ut'])}, {was('acc_ut', rows)}.")
    sentences.append(f"On retained classes: {percent(after['acc_rt'])}, {was('acc_rt', rows)}.")
    line = f"{percent(masked['acc_ut'])} and {percent(masked['acc_rt'])}" if known else percent(masked["acc_rt"])
    sentences.append(f"The masked model is the original with the forgotten outputs switched off; it gets {line}.")
    return [*sentences, masked_sentence(report)]


def of_images(rows: dict[str, dict]) -> list[str]:
    """Accuracies where images are forgotten and their classes stay."""
    lines = {"ua": "Share of the forget images that is answered wrongly", "ta": "Test accuracy"}
    return [f"{text}: {percent(rows['unlearned'][score])}, {was(score, rows)}." for score, text in lines.items()]


def was(score: str, rows: dict[str, dict]) -> str:
    """The original's and the retrained models' share."""
    line = f"before {percent(rows['original'][score])}"
    return f"{line}, retrained {percent(rows['retrained'][score])}" if "retrained" in rows else line


def distance(report) -> list[str]:
    """How far the answers are from a retrained model's, and whether masking gets as close."""
    rows = evaluated(report)
    values = {name: row["js_ut"] for name, row in rows.items() if row.get("js_ut") is not None}
    if not {"original", "masked", "unlearned"} <= set(values):
        return []
    line = (
        "On forgotten-class test images the unlearned model's answers are"
        f" {values['unlearned']:z.3f} nats (Jensen-Shannon) from a retrained model's; the original's are"
        f" {values['original']:z.3f}, the masked model's {values['masked']:z.3f} away."
    )
    if report.retrained_models > 1 and "retrained" in values:
        line += f" Retrained models are {values['retrained']:z.3f} from one another."
    gain = values["masked"] - values["unlearned"]
    tolerance = (report.floors.get("js_ut") or {}).get("tolerance")
    if tolerance is not None and abs(gain) <= tolerance:
        return [line, "The difference from the masked model is within what retrained models differ by."]
    if abs(gain) <= LEAST_TOLERANCE:
        return [line, "Masking alone gets as close."]
    return [line, f"So it is {'nearer to' if gain > 0 else 'no nearer to'} them than masking gets for free."]


def depth(report) -> list[str]:
    """Whether the forgotten is gone from inside or only from the outputs: probe and relearning."""
    rows = evaluated(report)
    found = rows.get("unlearned", {})
    sentences = []
    if found.get("relearn_steps") is not None:
        sentences.append(
            "Fine-tuned on the forget images, the unlearned model is back at 95 % of the original's accuracy on the"
            f" forgotten classes {steps(found['relearn_steps'])}" + compared(rows, "relearn_steps", steps)
        )
    if found.get("probe_auc") is not None:
        sentences.append(
            "A linear probe finds the forgotten class in its features with a ROC area of"
            f" {found['probe_auc']:.4f}" + compared(rows, "probe_auc", "{:.4f}".format)
        )
    mine = report.verdicts.get("unlearned", {})
    sound = [score for score, known in METRICS.items() if known.module in GROUPS["depth"] and not known.caveat]
    shallow = [score for score in sound if mine.get(score) == "not forgotten"]
    if shallow:
        sentences.append(
            f"By {', '.join(shallow)} the forgetting is shallow: what the outputs no longer show is still inside."
        )
    elif {mine.get(score) for score in sound} - {None} == {"cannot tell"}:
        sentences.append("No score of depth without a (!) can tell the original from retrained models here.")
    return sentences


def steps(value: float) -> str:
    """A number of relearning steps; 21 stands for never within 20."""
    return "never within 20 steps" if value > 20 else f"after {value:.3g} step{'' if value == 1 else 's'}"


def compared(rows: dict[str, dict], score: str, text) -> str:
    """The original's and the retrained model's value, in brackets."""
    names = [name for name in ("original", "retrained") if rows.get(name, {}).get(score) is not None]
    values = [f"{name} {text(rows[name][score])}" for name in names]
    return f" ({', '.join(values)})." if values else "."


def verdicts(report) -> list[str]:
    """How many scores say what, and how many of the good ones the masked model gets too."""
    if not judged(report):
        return missing_verdicts(report)
    mine, masked = report.verdicts["unlearned"], report.verdicts.get("masked", {})
    counts = Counter(verdict for verdict in mine.values() if verdict)
    line = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    sentences = [f"Of {counts.total()} scores that have a verdict on the unlearned model: {line}."]
    passed = [score for score, verdict in mine.items() if verdict == "as retrained"]
    earned = [score for score in passed if masked.get(score) != "as retrained"]
    if passed and masked:
        names = f": {', '.join(earned)}" if earned else ""
        sentences.append(
            f"Of the {counts['as retrained']} as retrained, the masked model is as retrained too on"
            f" {len(passed) - len(earned)}, which therefore say nothing about forgetting; {len(earned)} remain{names}."
        )
    if caveats(report):
        sentences.append(f"{len(caveats(report))} scores marked (!) failed to tell original from retrained in tests.")
    return sentences


def missing(report) -> list[str]:
    """What was not computed, and why."""
    return [f"Not computed, {reason}: {', '.join(scores)}." for reason, scores in missing_scores(report).items()]
