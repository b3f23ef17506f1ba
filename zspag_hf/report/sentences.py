"""The report in a few plain sentences, each computed from its numbers."""

from collections import Counter
from collections.abc import Callable

from ..metrics import AS_RETRAINED, BLIND, DIFFERS, LEAST_TOLERANCE, METRICS, NOT_FORGOTTEN
from .findings import Findings
from .tables import GROUPS, Rows, caveats, evaluated, judged, masked_sentence, missing_scores, missing_verdicts

NO_CERTIFICATE = (
    "All of this is evidence about behaviour on the images that were given. It is no certificate: no test of this kind"
    " can show that every trace is gone."
)
VERDICTS = {  # verdict -> what it means
    AS_RETRAINED: "within the range in which one more retrained model would fall",
    NOT_FORGOTTEN: "outside of it, and nearer to the original than to the retrained models",
    DIFFERS: "outside of it, on another side than the original",
    BLIND: "the original lies within that range itself, so the score cannot tell the two apart here",
}

PICTURES = {  # score -> what is put into the head; the first that is known is told
    "recovery_5": "five forget images of a class put into the head bring",
    "recovery_1": "one forget image of a class put into the head brings",
}


def reading(report: Findings) -> dict[str, list[str]]:
    """Heading -> sentences; headings without a sentence are left out."""
    rows = evaluated(report)
    parts = {
        "Accuracy alone proves nothing": _accuracy(report, rows),
        "Distance from retraining": _distance(report, rows),
        "Depth": _depth(report, rows),
        "Verdicts": _verdicts(report),
        "What is missing, and why": missing_scores(report),
    }
    return {heading: sentences for heading, sentences in parts.items() if sentences}


def _accuracy(report: Findings, rows: Rows) -> list[str]:
    """Both accuracies before and after, and what a model gets that forgot nothing."""
    if not {"original", "unlearned"} <= set(rows):
        return []

    def share(model: str, score: str) -> str:
        value = rows[model][score]
        return "unknown" if value is None else f"{value:.1%}"

    def line(text: str, score: str) -> str:
        beside = f", retrained {share('retrained', score)}" if "retrained" in rows else ""
        return f"{text}: {share('unlearned', score)}, before {share('original', score)}{beside}."

    if "masked" not in rows:  # images are forgotten, and their classes stay
        return [line("Share of the forget images that is answered wrongly", "ua"), line("Test accuracy", "ta")]
    told = {"acc_ut": "Test accuracy on forgotten classes", "acc_rt": "On retained classes"}
    if rows["unlearned"]["acc_ut"] is None:
        del told["acc_ut"]
    masked = " and ".join(share("masked", score) for score in told)
    return [
        *(line(text, score) for score, text in told.items()),
        f"The masked model is the original with the forgotten outputs switched off; it gets {masked}.",
        masked_sentence(report),
    ]


def _distance(report: Findings, rows: Rows) -> list[str]:
    """How far the answers are from a retrained model's, and whether masking gets as close."""
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
    gain, tolerance = values["masked"] - values["unlearned"], report.tolerance("js_ut")
    if tolerance is not None and abs(gain) <= tolerance:
        return [line, "The difference from the masked model is within what retrained models differ by."]
    if abs(gain) <= LEAST_TOLERANCE:
        return [line, "Masking alone gets as close."]
    return [line, f"So it is {'nearer to' if gain > 0 else 'no nearer to'} them than masking gets for free."]


def _depth(report: Findings, rows: Rows) -> list[str]:
    """Whether the forgotten is gone from inside or only from the outputs: recovery, relearning and probe."""
    sentences, verdicts = [], report.verdicts.get("unlearned", {})
    after = rows.get("unlearned", {})

    def compared(score: str, text: Callable[[float], str]) -> str:
        """The value, and the original's and the retrained model's in brackets."""
        names = [name for name in ("original", "retrained") if rows.get(name, {}).get(score) is not None]
        others = ", ".join(f"{name} {text(rows[name][score])}" for name in names)
        return f" {text(after[score])}{f' ({others})' if others else ''}."

    if told := [score for score in PICTURES if after.get(score) is not None][:1]:
        text = f"Without any training, {PICTURES[told[0]]} its accuracy back to"
        sentences.append(text + compared(told[0], "{:.1%}".format))
    if after.get("relearn_steps") is not None:
        sentences.append(
            "Fine-tuned on the forget images, the unlearned model is back at 95 % of the original's accuracy on the"
            " forgotten classes" + compared("relearn_steps", _steps)
        )
    if after.get("probe_auc") is not None:
        text = "A linear probe finds the forgotten class in its features with a ROC area of"
        sentences.append(text + compared("probe_auc", "{:.4f}".format))
    sound = [score for score, known in METRICS.items() if known.module in GROUPS["depth"] and not known.caveat]
    if shallow := [score for score in sound if verdicts.get(score) == NOT_FORGOTTEN]:
        sentences.append(
            f"By {', '.join(shallow)} the forgetting is shallow: what the outputs no longer show is still inside."
        )
    elif {verdicts.get(score) for score in sound} - {None} == {BLIND}:
        sentences.append("No score of depth without a (!) can tell the original from retrained models here.")
    return sentences


def _steps(value: float) -> str:
    """A number of relearning steps; 21 stands for never within 20."""
    return "never within 20 steps" if value > 20 else f"after {value:.3g} step{'' if value == 1 else 's'}"


def _verdicts(report: Findings) -> list[str]:
    """How many scores say what, and how many of the good ones the masked model gets too."""
    if not judged(report):
        return missing_verdicts(report)
    mine, masked = report.verdicts["unlearned"], report.verdicts.get("masked", {})
    counts = Counter(verdict for verdict in mine.values() if verdict)
    line = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    sentences = [f"Of {counts.total()} scores that have a verdict on the unlearned model: {line}."]
    passed = [score for score, verdict in mine.items() if verdict == AS_RETRAINED]
    earned = [score for score in passed if masked.get(score) != AS_RETRAINED]
    if passed and masked:
        names = f": {', '.join(earned)}" if earned else ""
        sentences.append(
            f"Of the {len(passed)} as retrained, the masked model is as retrained too on"
            f" {len(passed) - len(earned)}, which therefore say nothing about forgetting; {len(earned)} remain{names}."
        )
    if marked := len(caveats(report)):
        sentences.append(f"{marked} scores marked (!) failed to tell original from retrained in tests.")
    return sentences
