"""A finished run: the report's facts, the trained model among others, the proxies among real images."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalPrediction

from ..data.images import EvalDataset
from ..data.labels import distinct
from ..data.request import Request, new_entry
from ..evaluation import Comparison, PixelDataset, Table
from ..evaluation.comparison import drawn
from ..evaluation.others import load_other, load_others
from ..hub.datasets import hub_id
from ..hub.models import inherited_card, source_of
from ..hub.repository import HubOptions
from ..methods import Method, Run
from ..methods.stages import TRAINED_LABELS
from ..metrics import compute
from ..metrics.rows import TEST_FORGOTTEN, TEST_RETAINED, unit
from ..parallel.memory import peak_memory_mb
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import Layer
from ..pipeline.subspaces import LayerGrams
from ..report.report import UnlearningReport, versions
from .inputs import named
from .saving import copy_weights

PROJECTED = {"retained": 400, "forgotten": 100, "proxy": 400}  # points of a picture
PERPLEXITY = 30
LOGGED_CLASSES = 100  # accuracies by class go to the log up to so many classes; the report has them all


@dataclass(frozen=True)
class Origin:
    """Where the weights came from: Hub id or folder's name, commit or None, and what its card hands on."""

    base_model: str
    base_revision: str | None
    inherited: dict[str, Any]

    @classmethod
    def of(cls, model: PreTrainedModel, hub: HubOptions) -> Self:
        """The origin of a loaded model."""
        (base_model, base_revision), name = source_of(model), model.config._name_or_path
        revision = None if os.path.isdir(name) else base_revision
        return cls(base_model, base_revision, inherited_card(name, replace(hub, revision=revision)))


def finished_report(
    run: Run,
    method: Method,
    name: str,
    given: dict[str, Any],
    origin: Origin,
    request: Request,
    nonce: str,
    original: Mapping[str, Tensor],
) -> UnlearningReport:
    """The report of a finished training, its model rows still empty.

    Args:
        method: the run's own copy, with what it chose; name: what it is called by. given: the options that were given.
        nonce: of the commitment. original: weights and buffers as they came, by name.
    """
    args, facts = run.args, dict(run.plan.facts) if run.plan is not None else {}
    control, choice = facts.pop("control", None), None
    options = method.to_dict()
    if control is not None and run.plan is not None and run.plan.proxies is not None:
        choice = control.summary() | {name: options[name] for name in ("energy_threshold", "proxy_budget")}
    layers = facts.get("layers", [])
    wrong = None if run.plan is None else run.stages.load(TRAINED_LABELS)
    if layers:
        grams = LayerGrams(run.stages.on_disk("subspaces"), facts["owner"])
        layers = [
            fact | movement(run.layers[fact["name"]], original[f"{fact['name']}.weight"], grams[fact["name"]])
            for fact in layers
        ]
    entry = new_entry(
        named(request.class_ids, run.label_names),
        run.forget.images,
        nonce,
        base_model=origin.base_model,
        base_revision=origin.base_revision,
        method=name,
        seed=args.seed,
    )
    return UnlearningReport(
        method=name,
        about=method.described(),
        reads_retained=method.reads_retained,
        retained_images=None if run.retained is None else len(run.retained),
        public_images=facts.get("public"),
        method_options=options,
        given=given,
        base_model=origin.base_model,
        base_revision=origin.base_revision,
        inherited=origin.inherited,
        dataset=hub_id(args.dataset_name),
        forget_classes=named(request.forgotten_ids, run.label_names),
        forget_images=len(run.forget) // max(1, args.forget_views),
        seed=args.seed,
        proxies=facts.get("proxies"),
        layers=layers,
        trained_labels=None if wrong is None else named_labels(run, wrong[1]),
        choice=choice,
        curve=control.curve if control else [],
        timings_s=run.timings,
        peak_memory_mb=peak_memory_mb(),
        request=entry,
        history=request.history,
        config=args.public(),
        versions=versions(),
    )


def named_labels(run: Run, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of the stage "trained_labels" as the report has them; None where no label was wrong."""
    names = distinct(run.label_names)
    images = {names[k]: count for k, count in facts["images"]}
    return {"given": facts["given"], "images": images} if images else None


def movement(layer: Layer, original: Tensor, gram: Tensor) -> dict[str, float]:
    """weight_change ||W - W0|| / ||W0|| and proxy_drift ||(W - W0) R|| / ||W0 R|| of one layer, R the proxies' rows."""
    start = layer.matrix(original).double().cpu()
    change = layer.matrix(layer.weight.detach()).double().cpu() - start

    def energy(w: Tensor) -> float:
        w = w if layer.frame is None else w @ layer.frame.double().cpu()
        return float(((w @ gram) * w).sum().clamp_min(0))

    return {
        "weight_change": float(change.norm() / start.norm().clamp_min(1e-30)),
        "proxy_drift": (energy(change) / max(energy(start), 1e-300)) ** 0.5,
    }


def accuracy_metrics(prediction: EvalPrediction, forget_ids: list[int], label_names: list[str]) -> dict[str, float]:
    """acc_rt, acc_ut, their micro forms, and one accuracy a class, from gathered logits ``(N, C)``."""
    labels = prediction.label_ids
    splits = np.where(np.isin(labels, forget_ids), TEST_FORGOTTEN, TEST_RETAINED)
    scores = compute("unlearning_accuracy", predictions=prediction.predictions, references=labels, splits=splits)
    per_class = scores.pop("per_class")
    names = distinct(label_names)
    metrics = {k: v for k, v in scores.items() if k.startswith("acc_") and v is not None}
    shown = per_class if len(label_names) <= LOGGED_CLASSES else forget_ids
    for k in (k for k in shown if k in per_class):
        name = f"acc_{names[k]}"  # a class may be called "rt"
        metrics[f"{name} ({k})" if name in scores else name] = per_class[k]
    return metrics


def compare_trained(
    run: Run,
    original: Mapping[str, Tensor],
    accelerator: Any,
    test: EvalDataset,
    retain: EvalDataset | None,
    retrained: Any,
    beside: dict[str, Any] | None,
    level: str,
) -> Comparison:
    """The trained model among the others, checked before anything is computed."""
    forget, args, processor = run.forget, run.args, run.classifier.processor
    first = copy.deepcopy(run.model)
    copy_weights(original, first)

    def classifier(model: Any) -> PixelClassifier:
        return load_other(model, run.label_names, processor, args.device, args.other_hub)

    return Comparison(
        PixelClassifier(first, processor),
        run.classifier,
        run.forget_ids,
        run.label_names,
        PixelDataset(forget.images, forget.image_labels),
        test,
        accelerator,
        relearn_on=PixelDataset(forget.pixels, forget.labels),
        views=None
        if forget.unseen is None or forget.unseen_labels is None
        else PixelDataset(forget.unseen, forget.unseen_labels),
        retain=retain,
        **load_others(retrained, beside, classifier),
        level=level,
        seed=args.seed,
        quiet=run.quiet,
    )


def project(run: Run, table: Table) -> dict[str, list] | None:
    """Proxies among real test images in two dimensions, by the original model's penultimate features (figure 4).

    Of unit features at most 50 principal components, then t-SNE, seeded; at most ``PROJECTED`` points of a kind.

    Returns:
        x, y, kind ("proxy", "retained", "forgotten") and label, a point each; None for a run without paired proxies.
    """
    kept = None if run.plan is None else run.plan.projected
    if kept is None:
        return None
    parts = {"retained": table.rows(TEST_RETAINED), "forgotten": table.rows(TEST_FORGOTTEN)}
    rows = {kind: part[drawn(len(part), PROJECTED[kind], run.seed)] for kind, part in parts.items()}
    proxies = drawn(len(kept["labels"]), PROJECTED["proxy"], run.seed)
    features = [unit(table.features["original"][part]) for part in rows.values()]
    x = np.concatenate([*features, kept["features"][proxies].numpy()])
    if len(x) <= PERPLEXITY:
        return None
    ids = np.concatenate([*(table.references[part] for part in rows.values()), kept["labels"][proxies].numpy()])
    kinds = np.repeat([*rows, "proxy"], [*map(len, rows.values()), len(proxies)])
    reduced = PCA(min(50, *x.shape), random_state=run.seed).fit_transform(x)
    points = TSNE(2, perplexity=PERPLEXITY, init="pca", random_state=run.seed).fit_transform(reduced)
    labels = [run.label_names[i] for i in ids]
    return {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "kind": kinds.tolist(), "label": labels}
