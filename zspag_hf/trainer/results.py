"""A finished training run: the report's facts, the trained model among others, the proxies among real images."""

from __future__ import annotations

import copy
from enum import Enum

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from ..config import UnlearningConfig
from ..data.request import new_entry
from ..evaluation.comparison import Comparison, drawn, load_other, load_others
from ..evaluation.table import PixelDataset, Table
from ..hub.datasets import hub_id
from ..metrics.rows import TEST_FORGOTTEN, TEST_RETAINED
from ..parallel.memory import peak_memory_mb
from ..pipeline.classifier import PixelClassifier
from ..pipeline.subspaces import LayerGrams
from ..report.report import UnlearningReport, versions

LOCAL_OPTIONS = ("output_dir", "cache_dir", "dataset_name")  # may hold paths of this machine
PROJECTED = {"retained": 400, "forgotten": 100, "proxy": 400}  # points of a picture
PERPLEXITY = 30


def make_report(trainer) -> UnlearningReport:
    """The report of a finished training, its model rows still empty."""
    args, facts = trainer.args, dict(trainer.plan.facts)
    control = facts.pop("control", None)
    choice = None
    if control is not None:
        choice = control.summary() | {"energy_threshold": args.energy_threshold, "proxy_budget": args.proxy_budget}
        has_features = trainer.plan.proxies.features is not None
        choice |= {"features_drawn": has_features and args.feature_weight > 0 and args.scope != "head"}
        choice["probe"] = facts["probe"]
    grams = None
    if facts.get("layers"):
        grams = LayerGrams(trainer.cache.on_disk("subspaces"), facts["owner"])
    options = {name: getattr(args, name) for name in UnlearningConfig.__annotations__ if name not in LOCAL_OPTIONS}
    request = new_entry(
        trainer.named(trainer.request.class_ids),
        trainer.forget.images,
        trainer.nonce,
        base_model=trainer.base_model,
        base_revision=trainer.base_revision,
        args=args,
    )
    return UnlearningReport(
        method=args.method,
        base_model=trainer.base_model,
        base_revision=trainer.base_revision,
        inherited=trainer.inherited,
        dataset=hub_id(args.dataset_name),
        forget_classes=trainer.named(trainer.forget_ids),
        forget_images=len(trainer.forget) // max(1, args.forget_views),
        seed=args.seed,
        proxies=facts.get("proxies"),
        layers=[layer | movement(trainer, layer["name"], grams[layer["name"]]) for layer in facts.get("layers", [])],
        choice=choice,
        curve=control.curve if control else [],
        timings_s=trainer.timings,
        peak_memory_mb=peak_memory_mb(),
        request=request,
        history=trainer.request.history,
        config={k: v.value if isinstance(v, Enum) else v for k, v in options.items()},
        versions=versions(),
    )


def movement(trainer, name: str, gram: Tensor) -> dict[str, float]:
    """weight_change ||W - W0|| / ||W0|| and proxy_drift ||(W - W0) R|| / ||W0 R|| of one layer, R the proxies' rows."""
    layer = trainer.layers[name]
    start = layer.matrix(trainer.original[f"{name}.weight"]).double().cpu()
    change = layer.matrix(layer.weight.detach()).double().cpu() - start

    def energy(w: Tensor) -> float:
        w = w if layer.frame is None else w @ layer.frame.double().cpu()
        return float(((w @ gram) * w).sum().clamp_min(0))

    return {
        "weight_change": float(change.norm() / start.norm().clamp_min(1e-30)),
        "proxy_drift": (energy(change) / max(energy(start), 1e-300)) ** 0.5,
    }


def original_classifier(trainer) -> PixelClassifier:
    """A copy of the model with the weights that it came with."""
    model = copy.deepcopy(trainer.model)
    with torch.no_grad():
        held = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in trainer.original.items():
            held[name].copy_(tensor)
    return PixelClassifier(model, trainer.processing_class)


def compare_trained(trainer, test, retain, retrained, beside: dict | None, level: str) -> Comparison:
    """The trained model among the others, checked before anything is computed."""
    forget, names = trainer.forget, trainer.label_names_by_id

    def classifier(model) -> PixelClassifier:
        return load_other(model, names, trainer.processing_class, trainer.args.device, trainer.args.other_hub)

    return Comparison(
        original_classifier(trainer),
        trainer.classifier,
        trainer.forget_ids,
        names,
        PixelDataset(forget.images, forget.image_labels),
        test,
        trainer.accelerator,
        relearn_on=PixelDataset(forget.pixels, forget.labels),
        views=None if forget.unseen is None else PixelDataset(forget.unseen, forget.unseen_labels),
        retain=None if retain is None else trainer.labelled(retain),
        **load_others(retrained, beside, classifier),
        level=level,
        seed=trainer.args.seed,
        quiet=trainer.quiet,
    )


def project(trainer, table: Table) -> dict[str, list] | None:
    """Proxies among real test images in two dimensions, by the original model's penultimate features (figure 4).

    At most 50 principal components, then t-SNE, seeded; at most ``PROJECTED`` points of a kind.

    Returns:
        x, y, kind ("proxy", "retained", "forgotten") and label, a point each; None for a run without paired proxies.
    """
    kept = trainer.projected
    if kept is None:
        return None
    parts = {"retained": table.rows(TEST_RETAINED), "forgotten": table.rows(TEST_FORGOTTEN)}
    rows = {kind: found[drawn(len(found), PROJECTED[kind], trainer.args.seed)] for kind, found in parts.items()}
    proxies = drawn(len(kept["labels"]), PROJECTED["proxy"], trainer.args.seed)
    center, scale = (kept[name].numpy() for name in ("center", "scale"))
    features = [(table.features["original"][found] - center) / scale for found in rows.values()]
    x = np.concatenate([*features, kept["features"][proxies].numpy()])
    if len(x) <= PERPLEXITY:
        return None
    ids = np.concatenate([*(table.references[found] for found in rows.values()), kept["labels"][proxies].numpy()])
    kinds = np.repeat([*rows, "proxy"], [*map(len, rows.values()), len(proxies)])
    seed = trainer.args.seed
    reduced = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
    points = TSNE(2, perplexity=PERPLEXITY, init="pca", random_state=seed).fit_transform(reduced)
    labels = [trainer.label_names_by_id[i] for i in ids]
    return {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "kind": kinds.tolist(), "label": labels}
