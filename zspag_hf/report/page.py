"""The report as one self-contained HTML page: no script, no request, no image of the data."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..metrics import METRICS, Score
from .figures import draw_figures
from .figures.style import looks
from .report import UnlearningReport, finite
from .sentences import NO_CERTIFICATE, VERDICTS, reading
from .tables import MARKS, arrow, caveats, evaluated, graded, judged, missing_verdicts, summary_columns

MOST_LABELS = 12  # forgotten classes that the head of the page names
MARK = {"as retrained": "good", "not forgotten": "bad", "differs": "warn", "cannot tell": "blind"}

CAPTIONS = {  # figure -> how to read it
    "forgetting_scores": "Each line is a score, scaled so that retrained models stand at the left line and the original"
    " at the right one. Green: the range of one more retrained model. Grey: that range holds the original too, so the"
    " score cannot tell. What stands where the masked model stands was not earned by forgetting. Arrows lie beyond the"
    " scale.",
    "accuracy_per_class": "Test accuracy by class. With many classes: the forgotten ones and those that changed most,"
    " and above them the changes of all retained classes in order of size.",
    "relearning": "Accuracy on forgotten classes while a model is fine-tuned on the forget images. A model that only"
    " hides the class has it back at once; retrained models, which never saw it, show the speed to compare with.",
    "membership_roc": "The attack orders images by their loss and calls the lowest ones members. Its curve on a"
    " retrained model, which saw no forget image, is what to compare with.",
    "heatmaps": "GradCAM for the forgotten label, averaged over forgotten-class test images, on one colour scale.",
    "projection": "Penultimate features of the original model in two dimensions. Proxies are made from forget images to"
    " stand for retained classes. The picture shows neighbours, not distances.",
    "adaptation": "After each round the run reads held-out forget images and held-out proxies, keeps the round or rolls"
    " it back, and ends by itself. No retained and no test image is used.",
    "layers": "Left: how much of a layer's input the proxies use. Middle: how much of the forget images' energy the"
    " constraint leaves free to change. Right: ||W - W0|| / ||W0||, how far the weights moved, and how far that moved"
    " the layer's outputs on the proxies.",
}


def render(report, pictures: dict[str, bytes] | None = None) -> str:
    """The page of an evaluated report.

    Args:
        pictures: name -> PNG, as :func:`.figures.draw_figures` gives them; drawn here where they are not given.
    """
    report = UnlearningReport(**finite(asdict(report)))
    pictures = draw_figures(report) if pictures is None else pictures
    environment = Environment(
        loader=PackageLoader("zspag_hf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "linked": linked, "option": option, "digits": digits}
    rows = evaluated(report)
    return environment.get_template("report.html").render(
        report=report,
        rows=rows,
        labels=[str(c["label"]) for c in report.forget_classes],
        most_labels=MOST_LABELS,
        certificate=NO_CERTIFICATE,
        reading=reading(report),
        columns=summary_columns(rows),
        groups=graded(report),
        judged=judged(report),
        verdict_meanings=VERDICTS,
        mark=MARK,
        notes=[MARKS, *missing_verdicts(report), *caveats(report)],
        metrics=METRICS,
        arrows={score: arrow(score).strip() for score in METRICS},
        why=why,
        explained=explained,
        pictures={name: (CAPTIONS[name], pictures[name]) for name in CAPTIONS if name in pictures},
        chosen=chosen(report),
        colours={name: look[0] for name, look in looks(list(rows)).items()},
    )


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def linked(source: str) -> list[tuple[str, str]]:
    """A source as parts of text and address, the address empty but for arXiv numbers."""
    parts = re.split(r"(arXiv \d{4}\.\d{4,5}|\d{4}\.\d{5})", source)
    return [(p, f"https://arxiv.org/abs/{p.removeprefix('arXiv ')}" if i % 2 else "") for i, p in enumerate(parts) if p]


def option(value) -> str:
    """An option, count or version as text; empty for None and for an empty list."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {option(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(option, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def digits(value: float | None, form: str = "z.4f") -> str:
    """A number as text; a dash for None."""
    return "–" if value is None else format(value, form)


def why(report, score: str, model: str) -> str:
    """The reason for a value that is missing."""
    if score in report.reasons:
        return report.reasons[score]
    if model == "retrained" and report.retrained_models == 1:
        return "a distance among retrained models needs two of them"
    return "not computed for this model"


def explained(score: str) -> str:
    """What a score is, in one line: for a tooltip."""
    known: Score = METRICS[score]
    wanted = known.direction if known.direction.startswith("closest") else f"{known.direction} is better"
    return f"{known.definition} ({wanted})"


def chosen(report) -> list[str]:
    """What the run chose, a line each; empty where nothing is known of a run."""
    known = report.choice or report.config.get("learning_rate") is not None
    return report.chosen().splitlines() if known else []
