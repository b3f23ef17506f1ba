"""The report as one self-contained HTML page: no script, no request, no image of the data."""

import base64
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..metrics import AS_RETRAINED, BLIND, CLOSEST, DIFFERS, METRICS, NOT_FORGOTTEN
from .figures import draw_figures
from .figures.style import looks
from .files import finite
from .findings import Findings
from .sentences import NO_CERTIFICATE, VERDICTS, reading
from .tables import LEGEND, arrow, caveats, evaluated, graded, judged, missing_verdicts, summary_columns

TEMPLATES = Path(__file__).parent / "templates"
CAPTIONS: dict[str, str] = yaml.safe_load((TEMPLATES / "captions.yaml").read_text(encoding="utf-8"))
MOST_LABELS = 12  # forgotten classes that the head of the page names
MARK = {AS_RETRAINED: "good", NOT_FORGOTTEN: "bad", DIFFERS: "warn", BLIND: "blind"}  # verdict -> class of style


def render(report: Findings, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page of an evaluated report, as HTML.

    Args:
        pictures: name -> PNG, as :func:`.figures.draw_figures` gives them; drawn here where they are not given.
    """
    report = replace(report, **finite(asdict(report)))
    pictures, rows = draw_figures(report) if pictures is None else pictures, evaluated(report)
    settings: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    pages = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, **settings)
    pages.filters |= {"data_uri": data_uri, "linked": linked, "option": option, "digits": digits}
    return pages.get_template("report.html").render(
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
        notes=[LEGEND, *missing_verdicts(report), *caveats(report)],
        metrics=METRICS,
        arrows={score: arrow(score).strip() for score in METRICS},
        why=why,
        explained=explained,
        pictures={name: (caption, pictures[name]) for name, caption in CAPTIONS.items() if name in pictures},
        chosen=chosen(report),
        colours={name: look.colour for name, look in looks(rows).items()},
    )


def data_uri(data: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def linked(source: str) -> list[tuple[str, str]]:
    """A source as parts of text and address, the address empty but for arXiv numbers."""
    parts = re.split(r"(arXiv \d{4}\.\d{4,5}|\d{4}\.\d{5})", source)
    return [(p, f"https://arxiv.org/abs/{p.removeprefix('arXiv ')}" if i % 2 else "") for i, p in enumerate(parts) if p]


def option(value: Any) -> str:
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


def why(report: Findings, score: str, model: str) -> str:
    """The reason for a value that is missing."""
    alone = model == "retrained" and report.retrained_models == 1
    default = "a distance among retrained models needs two of them" if alone else "not computed for this model"
    return report.reasons.get(score, default)


def explained(score: str) -> str:
    """What a score is, in one line: for a tooltip."""
    known = METRICS[score]
    return f"{known.definition} ({known.direction}{'' if known.direction == CLOSEST else ' is better'})"


def chosen(report: Findings) -> list[str]:
    """What the run chose, a line each; empty where nothing is known of a run."""
    known = report.choice or report.options.get("learning_rate") is not None
    return report.chosen().splitlines() if known else []
