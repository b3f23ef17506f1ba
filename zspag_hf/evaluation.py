"""The report's rows: original, masked, unlearned and retrained model on the same images."""

from __future__ import annotations

import copy
from enum import Enum

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .classifier import PixelClassifier
from .config import UnlearningConfig
from .data import EvalDataset
from .held_out import jensen_shannon
from .metrics.unlearning_accuracy.unlearning_accuracy import UnlearningAccuracy
from .pseudo_labels import retained_mask
from .report import MODELS, UnlearningReport, peak_memory_mb, versions


def accuracies(logits: np.ndarray, labels: np.ndarray, forget_ids: list[int]) -> dict:
    """The UnlearningAccuracy metric on logits ``(N, C)`` and labels ``(N,)``."""
    metric = UnlearningAccuracy(keep_in_memory=True)
    return metric.compute(predictions=np.argmax(logits, 1), references=labels, forget_ids=forget_ids)


def make_report(trainer) -> UnlearningReport:
    """The report of a finished training, its model rows still empty."""
    args, facts = trainer.args, dict(trainer.plan.facts)
    control = facts.pop("control", None)
    choice = None
    if control is not None:
        choice = control.summary() | {"energy_threshold": args.energy_threshold, "proxy_budget": args.proxy_budget}
        choice["probe"] = facts["probe"]
    grams = facts.get("grams", {})
    options = {name: getattr(args, name) for name in UnlearningConfig.__annotations__ if name != "output_dir"}
    return UnlearningReport(
        method=args.method,
        base_model=trainer.base_model,
        forget_classes=[{"id": i, "label": trainer.label_names_by_id[i]} for i in trainer.forget_ids],
        forget_images=len(trainer.forget) // max(1, args.forget_views),
        seed=args.seed,
        proxies=facts.get("proxies"),
        layers=[layer | movement(trainer, layer["name"], grams[layer["name"]]) for layer in facts.get("layers", [])],
        choice=choice,
        curve=control.curve if control else [],
        timings_s=trainer.timings,
        peak_memory_mb=peak_memory_mb(),
        config={k: v.value if isinstance(v, Enum) else v for k, v in options.items()},
        versions=versions(),
    )


def movement(trainer, name: str, gram: Tensor) -> dict[str, float]:
    """weight_change ||W - W0|| / ||W0|| and proxy_drift ||(W - W0) R|| / ||W0 R|| of one layer, R the proxies' rows."""
    layer = trainer.layers[name]
    start = layer.matrix(trainer.original_weights[name]).double().cpu()
    change = layer.matrix(layer.weight.detach()).double().cpu() - start
    energy = lambda w: float(((w @ gram) * w).sum().clamp_min(0))  # noqa: E731
    return {
        "weight_change": float(change.norm() / start.norm().clamp_min(1e-30)),
        "proxy_drift": (energy(change) / max(energy(start), 1e-300)) ** 0.5,
    }


def fill_models(trainer, dataset: EvalDataset, retrained: PixelClassifier | None) -> None:
    """Fill the report's rows; every image is decoded once, every model's logits gathered once."""
    models = {"original": original_classifier(trainer), "unlearned": trainer.classifier}
    if retrained is not None:
        models["retrained"] = retrained
    rows, labels = gather_logits(trainer, models, dataset)
    gone = ~retained_mask(trainer.classifier.num_labels, trainer.forget_ids)
    rows["masked"] = rows["original"].masked_fill(gone, -torch.inf)
    forgotten, views = gone[labels], view_accuracies(trainer, models)
    for name in (n for n in MODELS if n in rows):
        scores = accuracies(rows[name].numpy(), labels.numpy(), trainer.forget_ids)
        scores["per_class"] = {trainer.label_names_by_id[k]: a for k, a in scores["per_class"].items()}
        scores["js_ut"] = None
        if retrained is not None and forgotten.any():
            p, q = (rows[n][forgotten].double().softmax(1) for n in (name, "retrained"))
            scores["js_ut"] = float(jensen_shannon(p, q).mean())
        trainer.report.models[name] = scores | {"acc_forget_views": views.get(name)}


def original_classifier(trainer) -> PixelClassifier:
    """A copy of the model with the weights that it came with."""
    model = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for name, weight in trainer.original_weights.items():
            model.get_submodule(name).weight.copy_(weight)
    return PixelClassifier(model, trainer.processing_class)


def view_accuracies(trainer, models: dict[str, PixelClassifier]) -> dict[str, float]:
    """Share of unseen views of the forget images that each model gives a forgotten label; {} without views."""
    pixels, gone = trainer.forget.unseen, torch.tensor(trainer.forget_ids)
    if pixels is None:
        return {}
    found = {name: torch.isin(model.predict(pixels).argmax(1), gone) for name, model in models.items()}
    return {"masked": 0.0} | {name: float(share.float().mean()) for name, share in found.items()}


def gather_logits(
    trainer, models: dict[str, PixelClassifier], dataset: EvalDataset
) -> tuple[dict[str, Tensor], Tensor]:
    """Name -> logits ``(N, C)``, and labels ``(N,)``, gathered over processes with exact counts."""
    parts: dict[str, list[Tensor]] = {name: [] for name in (*models, "labels")}
    for batch in tqdm(trainer.get_eval_dataloader(dataset), desc="Report", disable=trainer.quiet):
        out = {name: model.predict(batch["pixels"]).to(trainer.args.device) for name, model in models.items()}
        for name, rows in trainer.accelerator.gather_for_metrics({**out, "labels": batch["labels"]}).items():
            parts[name].append(rows.cpu())
    joined = {name: torch.cat(rows) for name, rows in parts.items()}
    return joined, joined.pop("labels")
