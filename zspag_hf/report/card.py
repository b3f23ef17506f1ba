"""The model card of an unlearned model: what was forgotten, how, how far, and what nobody can promise.

The card is public. It names classes and counts, and no image, index, proxy or folder. What came from elsewhere (labels,
the ledger, the base model's card) is untrusted: it stands in code spans, and in YAML that a library writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import UnlearningError
from ..metrics import METRICS
from .command import command
from .figures import FIGURES
from .page import CAPTIONS, MOST_LABELS, chosen, digits, explained
from .report import MODELS, UnlearningReport, finite
from .sentences import NO_CERTIFICATE, VERDICTS, reading
from .tables import arrow, evaluated, judged, summary_columns

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
HUB = "https://huggingface.co"
PUBLIC_FIGURES = tuple(name for name in CAPTIONS if name not in ("projection", "heatmaps"))  # those show single points
INDEXED = ("acc_rt", "acc_ut", "js_ut", "recovery_5", "relearn")  # scores that stand in the metadata
LONGEST = 80  # characters of a label that are shown
MOST_IN_TITLE, MOST_IN_ROW = 3, 5  # labels


def model_card(
    report: UnlearningReport,
    *,
    model_id: str | None = None,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> ModelCard:
    """The card of a run, evaluated or not. The same report gives the same bytes.

    Args:
        model_id: where the model will stand on the Hub; None where that is not known.
        language, license, tags, model_name, finetuned_from, tasks, dataset, dataset_tags, dataset_args: as in
            ``Trainer.create_model_card``, in the metadata in place of what the report says; tags and tasks beside the
            card's own tags. dataset_tags are ids, and dataset names for display, ids where no tags are given.

    Raises:
        UnlearningError: the report is of an evaluation alone.
    """
    report = UnlearningReport(**finite(asdict(report)))
    if report.request is None:
        raise UnlearningError("the report is of an evaluation alone: a card needs the report of an unlearning.")
    text = about_request(report, report.request) | about_run(report) | about_results(report)
    text |= {"model_id": json.dumps(model_id or "folder/of/this/model"), "command": command(report)}
    data = card_data(report, model_id)
    data.tags += [tag for tag in (*listed(tags), *listed(tasks)) if tag not in data.tags]
    ids, results = listed(dataset_tags or dataset), data.eval_results or []
    told: dict[str, Any] = {"language": language, "license": license, "datasets": ids, "base_model": finetuned_from}
    told |= {"model_name": model_name} if results else {}
    for name, value in told.items():
        if value:
            setattr(data, name, value)
    for result in results:
        if ids:
            result.dataset_type, result.dataset_name = ids[0], listed(dataset or ids)[0]
        result.dataset_config = ", ".join(listed(dataset_args)) or None
    return ModelCard.from_template(data, str(TEMPLATE), **text)


def listed(value: str | list[str] | None) -> list[str]:
    """One or several as a list."""
    return [value] if isinstance(value, str) else list(value or [])


# ---------------------------------------------------------------------- metadata


def card_data(report: UnlearningReport, model_id: str | None) -> ModelCardData:
    """What the Hub reads; what is unknown is left out."""
    on_hub, results = report.base_revision is not None, eval_results(report)
    tags = ["image-classification", "machine-unlearning", "zspag_hf", report.method.replace("_", "-")]
    if report.zero_shot:
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
    held = dict(report.inherited)
    link = held.pop("license_link", None)
    if isinstance(link, str) and link.startswith(("https://", "http://")):
        held["license_link"] = link
    elif isinstance(link, str) and report.base_revision is not None:
        held["license_link"] = f"{address(report.base_model)}/blob/{quote(report.base_revision)}/{quote(link)}"
    return held


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


def about_request(report: UnlearningReport, request: dict) -> dict:
    """What was forgotten, and of which model."""
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
        "zero_shot": report.zero_shot,
        "retained_images": report.retained_images and amount(report.retained_images, "image"),
        "public_images": report.public_images and amount(report.public_images["used"], "unlabelled image"),
        "about": " ".join(report.about),
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
    """The models by scores, in Markdown; other models' names are untrusted."""
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


def amount(count: Any, noun: str) -> str:
    """So many of something; a count from a ledger may be anything."""
    return f"{count if isinstance(count, int) else code(count)} {noun}{'' if count == 1 else 's'}"


def spans(value: str | list[str] | None) -> str | None:
    """One or several values as code spans."""
    return ", ".join(map(code, [value] if isinstance(value, str) else value)) if value else None


def address(name: str) -> str:
    """A repository's page on the Hub."""
    return f"{HUB}/{quote(name)}"


def table(head: Sequence[str], body: Sequence[Sequence[str]], side: str = ":--") -> str:
    """A table in Markdown, its first column aligned to the left and the others to a ``side``."""
    rule = [":--", *[side] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def code(text: Any) -> str:
    """Untrusted text as a code span, in which no Markdown, HTML, link or formula means anything.

    Line ends and invisible characters become spaces, a backtick ' and | a broken bar: no table is split at it.
    """
    plain = "".join(c if c.isprintable() else " " for c in str(text)).replace("`", "'").replace("|", "¦")
    plain = " ".join(plain.split())
    return f"`{plain[:LONGEST]}…`" if len(plain) > LONGEST else f"`{plain or ' '}`"
