"""The model card of an unlearned model: what was forgotten, how, how far, and what nobody can promise.

The card is public. It names classes and counts, and no image, index, proxy or folder. What came from elsewhere (labels,
the ledger, the base model's card) is untrusted: it stands in code spans, and in YAML that a library writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import UnlearningError
from ..methods import METHODS
from ..metrics import METRICS
from ..trainer.reads import FEW_LABELS, TARGETS
from .command import command
from .figures import FIGURES
from .page import CAPTIONS, MOST_LABELS, chosen, digits, explained
from .report import MODELS, UnlearningReport, finite
from .sentences import NO_CERTIFICATE, VERDICTS, reading
from .tables import arrow, evaluated, judged, summary_columns

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
HUB = "https://huggingface.co"
PUBLIC_FIGURES = tuple(name for name in CAPTIONS if name not in ("projection", "heatmaps"))  # those show single points
INDEXED = ("acc_rt", "acc_ut", "js_ut", "relearn")  # scores that stand in the metadata
LONGEST = 80  # characters of a label that are shown
MOST_IN_TITLE, MOST_IN_ROW = 3, 5  # labels

IN_PLACE = "In place of the method's own targets the forget images had"
PRIOR_TEXTS = {
    "renormalised": "the original outputs without the forgotten classes",
    "uniform": "all classes that stay alike",
    "second_best": "the most likely class that stays",
}
TILT_TEXTS = {"influence": ", tilted by influence", "similarity": ", tilted to the classes most like them", "none": ""}
CONSTRAINTS = {
    "soft": "Training steps were damped in the directions that the proxies use.",
    "hard": "Training steps were confined to directions that the proxies do not use.",
}


def model_card(report: UnlearningReport, *, model_id: str | None = None) -> ModelCard:
    """The card of a run, evaluated or not. The same report gives the same bytes.

    Args:
        model_id: where the model will stand on the Hub; None where that is not known.

    Raises:
        UnlearningError: the report is of an evaluation alone.
    """
    if report.request is None:
        raise UnlearningError("the report is of an evaluation alone: a card needs the report of an unlearning.")
    report = UnlearningReport(**finite(asdict(report)))
    text = about_request(report) | about_run(report) | about_results(report)
    text |= {"model_id": json.dumps(model_id or "folder/of/this/model"), "command": command(report)}
    return ModelCard.from_template(card_data(report, model_id), str(TEMPLATE), **text)


# ---------------------------------------------------------------------- metadata


def card_data(report: UnlearningReport, model_id: str | None) -> ModelCardData:
    """What the Hub reads; what is unknown is left out."""
    on_hub, results = report.base_revision is not None, eval_results(report)
    tags = ["image-classification", "machine-unlearning", "zspag_hf", report.method.replace("_", "-")]
    if not report.config.get("with_retain"):
        tags.insert(2, "zero-shot-unlearning")
    return ModelCardData(
        base_model=report.base_model if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        datasets=[report.dataset] if report.dataset else None,
        eval_results=results or None,
        model_name=(model_id or f"{report.base_model}-unlearned").split("/")[-1] if results else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=tags,
        **inherited(report),
    )


def inherited(report: UnlearningReport) -> dict:
    """Licence and language of the base model's card. A link to a file beside that card becomes one to its repository,
    and is dropped where there is none."""
    found = dict(report.inherited)
    link = found.pop("license_link", None)
    if isinstance(link, str) and link.startswith(("https://", "http://")):
        found["license_link"] = link
    elif isinstance(link, str) and report.base_revision is not None:
        found["license_link"] = f"{address(report.base_model)}/blob/{quote(report.base_revision)}/{quote(link)}"
    return found


def eval_results(report: UnlearningReport) -> list[EvalResult]:
    """The unlearned model's scores of INDEXED that were computed, each with its definition."""
    row = report.models.get("unlearned") or {}
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=report.dataset or "unknown",
            dataset_name=(report.dataset or "unknown").split("/")[-1],
            metric_type=score,
            metric_name=f"{score}: {METRICS[score].definition}",
            metric_value=round(row[score], 4) + 0.0,  # no -0.0
        )
        for score in INDEXED
        if row.get(score) is not None
    ]


# ---------------------------------------------------------------------- text


def about_request(report: UnlearningReport) -> dict:
    """What was forgotten, and of which model."""
    request = report.request
    classes = [f"{code(known['label'])} (id {known['id']})" for known in request["classes"]]
    licence = report.inherited.get("license_name") or report.inherited.get("license")
    return {
        "title": f"{code(report.base_model.split('/')[-1])} without {in_short(request, MOST_IN_TITLE)}",
        "base": code(report.base_model),
        "base_address": address(report.base_model) if report.base_revision else None,
        "base_commit": (report.base_revision or "")[:7],
        "licence": spans(licence),
        "languages": spans(report.inherited.get("language")),
        "dataset": code(report.dataset) if report.dataset else None,
        "dataset_address": address(f"datasets/{report.dataset}"),
        "classes": classes[:MOST_LABELS],
        "more_classes": classes[MOST_LABELS:],
        "images": amount(request["images"], "image"),
        "date": request["date"],
        "commitment": code(request["commitment"]),
        "history": history_table(report.history) if report.history else None,
        "every_class": len(report.forget_classes),
    }


def about_run(report: UnlearningReport) -> dict:
    """How it was forgotten, and whether the run itself says that it was."""
    choice = report.choice
    return {
        "zero_shot": not report.config.get("with_retain"),
        "description": METHODS[report.method].description,
        "paper": report.config.get("variant") == "paper",
        "targets": other_targets(report),
        "constraint": constraint_text(report),
        "views": report.config.get("forget_views"),
        "proxies": (report.proxies or {}).get("count"),
        "left_out": report.left_out(),
        "seed": report.seed,
        "chosen": [line[0].upper() + line[1:] for line in chosen(report)],
        "by_itself": choice is not None,
        "not_forgotten": choice is not None and not choice["forgotten"],
        "left": digits(choice["forget_probability"][-1], ".3g") if choice else None,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "remote_code": bool(report.config.get("trust_remote_code")),
    }


def constraint_text(report: UnlearningReport) -> str | None:
    """How proxies confined the steps; of a method that has other images for that its description tells."""
    if not METHODS[report.method].reads_proxies(True, True, True):
        return None
    return CONSTRAINTS.get(report.config.get("constraint"))


def other_targets(report: UnlearningReport) -> str | None:
    """What the forget images were trained on, where it is not the method's own."""
    method, config = METHODS[report.method], report.config
    named, own = [[of.get(name) for name in TARGETS] for of in (config, method.settings(FEW_LABELS))]
    if report.method == "zspag" or named[0] is None or named == own:
        return None
    if named[0] == "paper":
        return f"{IN_PLACE} pseudo-labels by influence, eq. 7-10 of ZS-PAG."
    return f"{IN_PLACE} {PRIOR_TEXTS[named[1]]}{TILT_TEXTS[named[2]]}."


def about_results(report: UnlearningReport) -> dict:
    """How far it was forgotten, by the report's numbers; empty where nothing was evaluated."""
    rows = evaluated(report)
    columns = {key: column(key, title) for key, title in summary_columns(rows)}
    pictures = [name for name in PUBLIC_FIGURES if rows and FIGURES[name](report) is not None]
    return {
        "rows": list(rows),
        "results": results_table(rows, columns),
        "counts": ", ".join(f"{count} {split.replace('_', ' ')}" for split, count in report.images.items()),
        "level": report.level,
        "scores": [f"{title}: {meaning(key)}" for key, title in columns.items()],
        "retrained": report.retrained_models,
        "reading": reading(report) if rows else {},
        "verdicts": VERDICTS if judged(report) else {},
        "pictures": {name: CAPTIONS[name] for name in pictures},
        "certificate": NO_CERTIFICATE,
    }


def results_table(rows: dict[str, dict], columns: dict[str, str]) -> str:
    body = []
    for name, row in rows.items():
        title = f"**{name}**" if name == "unlearned" else name if name in MODELS else code(name)
        body.append([title, *(digits(row.get(key), ".1f" if key == "seconds" else "z.4f") for key in columns)])
    return table(["model", *columns.values()], body, "--:")


def column(key: str, title: str) -> str:
    """A score's title with its direction, and (!) where its calibration failed."""
    if key not in METRICS:
        return title
    return f"{title} {arrow(key).strip()}{' (!)' if METRICS[key].caveat else ''}"


def meaning(key: str) -> str:
    """What a column of the results is."""
    if key not in METRICS:
        return "of the training, where it was timed"
    caveat = METRICS[key].caveat
    return f"{explained(key)}{f'. (!) {caveat}' if caveat else ''}"


def history_table(history: list[dict]) -> str:
    """The earlier requests, oldest first."""
    head = ["date", "forgotten", "images", "method", "seed", "commitment"]
    body = [
        [
            *(code(entry.get("date", "unknown")), in_short(entry, MOST_IN_ROW)),
            *(code(entry.get(key, "unknown")) for key in ("images", "method", "seed")),
            code(f"{str(entry.get('commitment', 'unknown'))[:16]}…"),
        ]
        for entry in history
    ]
    return table(head, body)


def in_short(entry: dict, most: int) -> str:
    """What a request forgot: its first classes, or how many images whose classes stay."""
    labels = [code(known["label"]) for known in entry["classes"]]
    if not labels:
        return f"{amount(entry.get('images', 'some'), 'image')} of classes that stay"
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def amount(count, noun: str) -> str:
    return f"{count if isinstance(count, int) else code(count)} {noun}{'' if count == 1 else 's'}"


def spans(value: str | list[str] | None) -> str | None:
    """One or several values as code spans."""
    return ", ".join(map(code, [value] if isinstance(value, str) else value)) if value else None


def address(name: str) -> str:
    return f"{HUB}/{quote(name)}"


def table(head: Sequence[str], body: Sequence[Sequence[str]], side: str = ":--") -> str:
    """A table in Markdown, its first column aligned to the left and the others to a ``side``."""
    rule = [":--", *[side] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def code(text) -> str:
    """Untrusted text as a code span, in which no Markdown, HTML, link or formula means anything.

    Line ends and invisible characters become spaces, a backtick ' and | a broken bar: no table is split at it.
    """
    plain = "".join(c if c.isprintable() else " " for c in str(text)).replace("`", "'").replace("|", "¦")
    plain = " ".join(plain.split())
    return f"`{plain[:LONGEST]}…`" if len(plain) > LONGEST else f"`{plain or ' '}`"
