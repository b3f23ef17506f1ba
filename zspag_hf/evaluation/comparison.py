"""One evaluation: models and data in, the report's rows, floors, verdicts and curves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..data.labels import distinct
from ..errors import UnlearningError, check_choice, check_range
from ..hub.models import HubOptions, resolve_model
from ..metrics import METRICS, compute
from ..metrics.rows import FORGET, RETAIN, TEST_FORGOTTEN, TEST_RETAINED, VIEWS
from ..parallel.processes import each_shared
from ..pipeline.classifier import PixelClassifier, to_unit
from ..pipeline.layers import constrained_layers, head_name
from ..report.report import UnlearningReport, model_name
from ..trainer.checks import check_outputs, check_same_labels, check_trainable
from .floors import PAIRWISE, floor, least_tolerances, verdict
from .heatmaps import heatmap_layer, heatmaps
from .relearning import RelearnData, relearn_all
from .scores import averaged, gap_scores, membership_roc, table_scores, with_reasons
from .table import TEST, PixelDataset, Table, gather_table


@dataclass(frozen=True)
class Level:
    """How much is computed.

    Attributes:
        retain_images: retained training images used at most.
        relearn_repeats: fine-tunings averaged into a relearning curve, each with other batches.
        relearn_mixed: also on forget and retained images together.
        heatmap_images: forgotten-class test images that GradCAM looks at.
    """

    retain_images: int
    relearn_repeats: int
    relearn_mixed: bool
    heatmap_images: int


LEVELS = {"quick": Level(2000, 1, False, 0), "full": Level(5000, 3, True, 64)}
RELEARN_IMAGES, WATCHED_IMAGES = 500, 200  # to fine-tune on, and to watch, of each kind


@dataclass
class Comparison:
    """Everything that an evaluation reads.

    Attributes:
        original, unlearned: the model before and after.
        retrained: models trained without the forgotten classes; each score is a mean over them.
        beside: further unlearned models by name, rows of the same table.
        forget: the images of the request; views: unseen random crops of them, or None; relearn_on: what a relearner is
            given, in place of the images themselves.
        test, retain: data sets with a ``labels`` tensor and {"pixels", "labels"} items; retain may be None.
        heads: model -> name of its classification head, None for a model without one; found here.
    """

    original: PixelClassifier
    unlearned: PixelClassifier
    forget_ids: list[int]
    label_names: list[str]
    forget: PixelDataset
    test: Dataset
    accelerator: object
    views: PixelDataset | None = None
    relearn_on: PixelDataset | None = None
    retain: Dataset | None = None
    retrained: list[PixelClassifier] = field(default_factory=list)
    beside: dict[str, PixelClassifier] = field(default_factory=dict)
    level: str = "quick"
    seed: int = 0
    quiet: bool = True

    def __post_init__(self):
        check_choice("level", self.level, LEVELS)
        check_range("seed", self.seed, whole=True, least=0, most=2**32 - 1)
        taken = {"original", "masked", "unlearned", "retrained"} & set(self.beside)
        taken |= {name for name in self.beside if name.startswith("retrained ")}
        if taken:
            raise UnlearningError(f"the name {taken.pop()!r} has a row of its own: give the model beside another name.")
        if torch.isin(self.test.labels, torch.tensor(self.forget_ids)).all():
            raise UnlearningError(
                f"the test set holds no image of a retained class, only {len(self.test)} of forgotten ones: add some"
                " to the test_dataset, to see what it cost."
            )
        if self.retain is not None:
            gone = torch.isin(self.retain.labels, torch.tensor(self.forget_ids))
            if gone.any():
                raise UnlearningError(
                    f"the retain set holds {int(gone.sum())} images of forgotten classes, first image"
                    f" {int(gone.nonzero()[0])}: keep only images of retained classes."
                )
            self.retain = Subset(self.retain, drawn(len(self.retain), LEVELS[self.level].retain_images, self.seed))

        sample = stacked(self.test, range(min(2, len(self.test))))[0]
        self.heads = {name: probed(name, model, sample, len(self.label_names)) for name, model in self.models.items()}

    @property
    def references(self) -> dict[str, PixelClassifier]:
        """The retained models under the names of their columns."""
        return {f"retrained {i + 1}": model for i, model in enumerate(self.retrained)}

    @property
    def models(self) -> dict[str, PixelClassifier]:
        return {"original": self.original, **self.beside, "unlearned": self.unlearned, **self.references}

    def run(self, report: UnlearningReport) -> Table:
        """Fill the report's rows, reasons, floors, verdicts, curves and counts; returns the table behind them."""
        parts = {TEST: self.test, FORGET: self.forget, RETAIN: self.retain, VIEWS: self.views}
        table = gather_table(
            self.models,
            {name: part for name, part in parts.items() if part is not None},
            self.forget_ids,
            self.accelerator,
            self.heads,
            disable_progress=self.quiet,
        )
        if self.forget_ids:  # else there is nothing to mask
            add_masked(table, self.forget_ids)
        references = list(self.references)
        names = list(table.logits)
        found = each_shared(lambda name: table_scores(table, name, [r for r in references if r != name]), names)
        rows = dict(zip(names, found, strict=True))
        report.relearning = self.relearn(rows)
        report.heatmaps = self.look(rows)
        for row in rows.values():
            row["per_class"] = {distinct(self.label_names)[k]: a for k, a in row["per_class"].items()}
        others = {name: [rows[r] for r in references if r != name] for name in rows}
        gaps = {name: gap_scores(rows[name], mean_row(found)) for name, found in others.items() if found}
        for name, found in gaps.items():
            rows[name] |= found
        seeds = [rows.pop(name) for name in references]
        if seeds:
            rows["retrained"] = mean_row(seeds)
        report.reasons, report.row_reasons = with_reasons(rows, self.given(table), len(seeds))
        least = least_tolerances(table)
        report.floors = {s: floor([row.get(s) for row in seeds], s in PAIRWISE, least[s]) for s in METRICS}
        report.verdicts = {
            name: {s: verdict(s, row[s], rows["original"][s], report.floors[s]) for s in METRICS}
            for name, row in rows.items()
            if name not in ("original", "retrained")
        }
        report.rocs = {name: membership_roc(table, name) for name in table.logits}
        report.images = {str(split): int((table.splits == split).sum()) for split in np.unique(table.splits)}
        report.level, report.retrained_models = self.level, len(seeds)
        order = ["original", "masked", *self.beside, "unlearned", "retrained"]
        report.models = {name: rows.get(name) for name in order}
        return table

    def given(self, table: Table) -> set[str]:
        """What this evaluation has to offer, as keys of NEEDS."""
        found = {
            "retain": len(table.rows(RETAIN)),
            "retrained": len(self.retrained),
            "forgotten": len(table.rows(TEST_FORGOTTEN)),
            "views": len(table.rows(VIEWS)),
            "watched": len(table.rows(TEST_FORGOTTEN, VIEWS)),
            "head": self.heads["original"] is not None,
            "full": self.level == "full",
        }
        return {name for name, there in found.items() if there}

    # ------------------------------------------------------------------ depth

    def relearn(self, rows: dict[str, dict]) -> dict[str, dict]:
        """Relearning curves by model, and their scores written into the rows."""
        watched = self.watched(TEST_FORGOTTEN, among=(self.relearn_on or self.forget).labels)
        if watched is None and self.views is not None:
            watched = stacked(self.views, drawn(len(self.views), WATCHED_IMAGES, self.seed))
        if watched is None:
            return {}
        level = LEVELS[self.level]
        data = RelearnData(self.some(self.relearn_on or self.forget), watched, self.watched(TEST_RETAINED))
        retain = self.some(self.retain) if level.relearn_mixed and self.retain is not None else None
        curves = relearn_all(self.models, data, retain, level.relearn_repeats, self.seed, self.quiet)
        if "masked" in rows:
            curves["masked"] = curves["original"]  # its weights are the original's
        start = curves["original"]["forget"]["acc_ut"][0]
        for name, kinds in curves.items():
            mine = kinds["forget"]["acc_ut"]
            others = [curves[r]["forget"]["acc_ut"] for r in self.references if r != name]
            curve = {"predictions": mine, "original": start}
            found = averaged([compute("relearning", references=other, **curve) for other in others or [mine]])
            rows[name] |= found if others else {key: value for key, value in found.items() if key != "ain"}
            if "mixed" in kinds:
                rows[name]["relearn_mixed"] = float(np.mean(kinds["mixed"]["acc_ut"][1:]))
        return curves

    def some(self, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Images to fine-tune on."""
        return stacked(dataset, drawn(len(dataset), RELEARN_IMAGES, self.seed))

    def watched(
        self, split: str, most: int = WATCHED_IMAGES, among: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Some test images of forgotten or of retained classes; None where there is none.

        Args:
            among: labels that they may have: a fine-tuning on one request's classes cannot bring back another's.
        """
        gone = torch.isin(self.test.labels, torch.tensor(self.forget_ids))
        fits = gone if split == TEST_FORGOTTEN else ~gone
        rows = (fits if among is None else fits & torch.isin(self.test.labels, among)).nonzero().squeeze(1)
        chosen = rows[drawn(len(rows), most, self.seed)].tolist()
        return stacked(self.test, chosen) if chosen else None

    # ------------------------------------------------------------------ where the models look

    def look(self, rows: dict[str, dict]) -> dict[str, list]:
        """GradCAM of each model on forgotten-class test images, for their own label: mean map by model, and the
        similarity to the retrained models' written into the rows."""
        count = LEVELS[self.level].heatmap_images
        watched = self.watched(TEST_FORGOTTEN, count) if count else None
        if watched is None:
            return {}
        pixels, labels = watched
        layers = {name: heatmap_layer(model, pixels[:1]) for name, model in self.models.items()}
        if None in layers.values():
            return {}
        names = list(self.models)
        found = each_shared(lambda name: heatmaps(self.models[name], layers[name], pixels, labels), names)
        maps = dict(zip(names, found, strict=True))
        if len({found.shape for found in maps.values()}) > 1:  # other architectures have other grids
            return {}
        flat = {name: found.flatten(1).numpy() for name, found in maps.items()}
        for name in maps:
            others = [flat[r] for r in self.references if r != name]
            if others:
                found = [compute("heatmap_similarity", predictions=flat[name], references=other) for other in others]
                rows[name] |= averaged(found)
        rows["masked"]["gradcam_similarity"] = rows["original"].get("gradcam_similarity")
        return {name: found.mean(0).tolist() for name, found in maps.items()}


GEOMETRY = (  # what a processor does to an image before it is normalised
    *("do_resize", "size", "resample", "size_divisor", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order"),
    *("do_center_crop", "crop_size", "crop_pct", "do_pad", "pad_size"),
)


def load_other(model, names: list[str], processor, device, hub: HubOptions) -> PixelClassifier:
    """A model to compare, with its own normalisation, on pixels that the original's processor made.

    Raises:
        UnlearningError: other classes, half-precision weights, or another size of image.
    """
    loaded, own = resolve_model(model, processor if isinstance(model, torch.nn.Module) else None, hub)
    check_same_labels(loaded.config, names)
    check_trainable(loaded)
    mine, theirs = ({key: p.to_dict().get(key) for key in GEOMETRY} for p in (processor, own))
    if unequal := [f"{key} {theirs[key]}, not {mine[key]}" for key in GEOMETRY if mine[key] != theirs[key]]:
        raise UnlearningError(
            f"{model_name(loaded)!r} reads images of another size or crop than the original ({'; '.join(unequal)}):"
            " models are compared on the same pixels. Give one with the original's image processor."
        )
    return PixelClassifier(loaded.to(device).eval(), own)


def load_others(retrained, beside: dict | None, load) -> dict:
    """The ``retrained`` and ``beside`` of a :class:`Comparison`, from one model or several, each by ``load``.

    Raises:
        UnlearningError: ``beside`` is no dict of models by name.
    """
    if beside is not None and not (isinstance(beside, dict) and all(name and isinstance(name, str) for name in beside)):
        given = f"names {list(beside)}" if isinstance(beside, dict) else type(beside).__name__
        raise UnlearningError(f"beside must be a dict, name of the row -> model, not {given}: name each model.")
    given = retrained if isinstance(retrained, (list, tuple)) else [] if retrained is None else [retrained]
    return {
        "retrained": [load(model) for model in given],
        "beside": {name: load(model) for name, model in (beside or {}).items()},
    }


def probed(name: str, model: PixelClassifier, pixels: Tensor, count: int) -> str | None:
    """The name of a model's head, after one look at two images.

    Raises:
        UnlearningError: outputs of another shape, or not finite.
    """
    check_outputs(model, pixels, f"{name} model", "test images")
    sample = to_unit(pixels, model.device)
    return head_name(constrained_layers(model.model, lambda: model(sample)), count)


def add_masked(table: Table, forget_ids: Sequence[int]) -> None:
    """The masked model's columns: the original's with the forgotten logits at -inf; the features are the same."""
    masked = table.logits["original"].copy()
    masked[:, list(forget_ids)] = -np.inf
    table.logits["masked"] = masked
    if "original" in table.features:
        table.features["masked"] = table.features["original"]


def mean_row(seeds: list[dict]) -> dict:
    """The retrained models' mean of every score, and of every class's accuracy."""
    row = averaged([{k: v for k, v in seed.items() if k != "per_class"} for seed in seeds])
    return row | {"per_class": averaged([seed["per_class"] for seed in seeds])}


def drawn(count: int, most: int, seed: int) -> list[int]:
    """At most ``most`` of ``count`` indices, in order, drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values.tolist()


def stacked(dataset: Dataset, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some items as pixels ``(n, channels, H, W)`` and labels ``(n,)``."""
    items = [dataset[row] for row in rows]
    return torch.stack([item["pixels"] for item in items]), torch.stack([item["labels"] for item in items])
