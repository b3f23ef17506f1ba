"""One evaluation: models and data in, the report's rows, floors, verdicts and curves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..classifier import PixelClassifier
from ..errors import UnlearningError
from ..metrics import METRICS, compute
from ..metrics.rows import FORGET, RETAIN, TEST_FORGOTTEN, TEST_RETAINED, VIEWS
from ..report import UnlearningReport
from .floors import floor, verdict
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
        forget: the images of the request; views: unseen random crops of them, or None.
        test, retain: data sets with a ``labels`` tensor and {"pixels", "labels"} items; retain may be None.
        head: name of the classification head, None for a model without one.
    """

    original: PixelClassifier
    unlearned: PixelClassifier
    forget_ids: list[int]
    label_names: list[str]
    forget: PixelDataset
    test: Dataset
    accelerator: object
    head: str | None
    views: PixelDataset | None = None
    retain: Dataset | None = None
    retrained: list[PixelClassifier] = field(default_factory=list)
    beside: dict[str, PixelClassifier] = field(default_factory=dict)
    level: str = "quick"
    seed: int = 0
    quiet: bool = True

    def __post_init__(self):
        if self.level not in LEVELS:
            raise UnlearningError(f"level={self.level!r} is not one of {', '.join(map(repr, LEVELS))}.")
        taken = {"original", "masked", "unlearned", "retrained"} & set(self.beside)
        if taken:
            raise UnlearningError(f"the name {taken.pop()!r} has a row of its own: give the model beside another name.")
        if self.retain is not None:
            gone = torch.isin(self.retain.labels, torch.tensor(self.forget_ids))
            if gone.any():
                raise UnlearningError(
                    f"the retain set holds {int(gone.sum())} images of forgotten classes, first image"
                    f" {int(gone.nonzero()[0])}: keep only images of retained classes."
                )
            self.retain = Subset(self.retain, drawn(len(self.retain), LEVELS[self.level].retain_images, self.seed))

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
            self.head,
            disable_progress=self.quiet,
        )
        add_masked(table, self.forget_ids)
        references = list(self.references)
        rows = {name: table_scores(table, name, [r for r in references if r != name]) for name in table.logits}
        report.relearning = self.relearn(rows, table)
        report.heatmaps = self.look(rows)
        seeds = [rows.pop(name) for name in references]
        for row in (*rows.values(), *seeds):
            row["per_class"] = {self.label_names[k]: a for k, a in row["per_class"].items()}
        if seeds:
            rows["retrained"] = mean_row(seeds)
            for row in rows.values():
                row.update(gap_scores(row, rows["retrained"]))
        for row in seeds:
            row.update(gap_scores(row, rows["retrained"]))
        report.reasons = with_reasons(rows, self.given(table))
        report.floors = {score: floor([row.get(score) for row in seeds]) for score in METRICS}
        report.verdicts = {
            name: {score: verdict(row[score], rows["original"][score], report.floors[score]) for score in METRICS}
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
            "head": self.head is not None,
            "full": self.level == "full",
        }
        return {name for name, there in found.items() if there}

    # ------------------------------------------------------------------ depth

    def relearn(self, rows: dict[str, dict], table: Table) -> dict[str, dict]:
        """Relearning curves by model, and their scores written into the rows."""
        watched = self.watched(TEST_FORGOTTEN) or first(self.views, WATCHED_IMAGES)
        if watched is None:
            return {}
        level = LEVELS[self.level]
        data = RelearnData(first(self.forget, RELEARN_IMAGES), watched, self.watched(TEST_RETAINED))
        retain = first(self.retain, RELEARN_IMAGES) if level.relearn_mixed else None
        curves = relearn_all(self.models, data, retain, level.relearn_repeats, self.seed, self.accelerator, self.quiet)
        curves["masked"] = curves["original"]  # its weights are the original's
        start = curves["original"]["forget"]["acc_ut"][0]
        goal = np.mean([curves[name]["forget"]["acc_ut"] for name in self.references], 0) if self.references else None
        for name, kinds in curves.items():
            mine = kinds["forget"]["acc_ut"]
            scores = compute("relearning", predictions=mine, references=mine if goal is None else goal, original=start)
            if goal is None:
                del scores["ain"]
            rows[name] |= scores
            if "mixed" in kinds:
                rows[name]["relearn_mixed"] = float(np.mean(kinds["mixed"]["acc_ut"][1:]))
        return curves

    def watched(self, split: str) -> tuple[Tensor, Tensor] | None:
        """Some test images of forgotten or of retained classes; None where there is none."""
        gone = torch.isin(self.test.labels, torch.tensor(self.forget_ids))
        rows = (gone if split == TEST_FORGOTTEN else ~gone).nonzero().squeeze(1)
        chosen = rows[drawn(len(rows), WATCHED_IMAGES, self.seed)].tolist()
        return stacked(self.test, chosen) if chosen else None

    # ------------------------------------------------------------------ where the models look

    def look(self, rows: dict[str, dict]) -> dict[str, list]:
        """GradCAM of each model on forgotten-class test images, for their own label: mean map by model, and the
        similarity to the retrained models' written into the rows."""
        count = LEVELS[self.level].heatmap_images
        watched = self.watched(TEST_FORGOTTEN) if count else None
        if watched is None:
            return {}
        pixels, labels = (column[:count] for column in watched)
        layer = heatmap_layer(self.original, pixels[:1])
        if layer is None:
            return {}
        maps = {name: heatmaps(model, layer, pixels, labels) for name, model in self.models.items()}
        flat = {name: found.flatten(1).numpy() for name, found in maps.items()}
        for name in maps:
            others = [flat[r] for r in self.references if r != name]
            if others:
                found = [compute("heatmap_similarity", predictions=flat[name], references=other) for other in others]
                rows[name] |= averaged(found)
        rows["masked"]["gradcam_similarity"] = rows["original"].get("gradcam_similarity")
        return {name: found.mean(0).tolist() for name, found in maps.items()}


def add_masked(table: Table, forget_ids: Sequence[int]) -> None:
    """The masked model's columns: the original's with the forgotten logits at -inf; the features are the same."""
    masked = table.logits["original"].copy()
    masked[:, list(forget_ids)] = -np.inf
    table.logits["masked"] = masked
    if table.features:
        table.features["masked"] = table.features["original"]


def mean_row(seeds: list[dict]) -> dict:
    """The retrained models' mean of every score, and of every class's accuracy."""
    row = averaged([{k: v for k, v in seed.items() if k != "per_class"} for seed in seeds])
    return row | {"per_class": averaged([seed["per_class"] for seed in seeds])}


def drawn(count: int, most: int, seed: int) -> list[int]:
    """At most ``most`` of ``count`` indices, in order, drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values.tolist()


def first(dataset: Dataset | None, most: int) -> tuple[Tensor, Tensor] | None:
    return None if dataset is None else stacked(dataset, range(min(most, len(dataset))))


def stacked(dataset: Dataset, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some items as pixels ``(n, channels, H, W)`` and labels ``(n,)``."""
    items = [dataset[row] for row in rows]
    return torch.stack([item["pixels"] for item in items]), torch.stack([item["labels"] for item in items])
