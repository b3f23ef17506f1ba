"""One evaluation: models and data in, the report's rows, floors, verdicts and curves out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Subset

from ..data.images import EvalDataset
from ..data.labels import distinct
from ..errors import UnlearningError, check_choice, check_range
from ..metrics import METRICS, compute
from ..metrics.rows import FORGET, NEIGHBOURS, RETAIN, SPLITS, TEST_FORGOTTEN, TEST_RETAINED, VIEWS
from ..parallel.processes import each_shared
from ..pipeline.classifier import PixelClassifier, to_unit
from ..pipeline.layers import constrained_layers, head_name
from ..pipeline.neighbours import neighbours
from ..report.report import MODELS, UnlearningReport
from .accepted import check_outputs
from .apart import reasons_told, without_forget_images
from .floors import PAIRWISE, floor, least_tolerances, verdict
from .heatmaps import heatmap_layer, heatmaps
from .relearning import Images, RelearnData, relearn_all
from .scores import Row, averaged, gap_scores, membership_roc, table_scores, with_reasons
from .table import TEST, PixelDataset, Table, gather_table

Labelled: TypeAlias = EvalDataset | PixelDataset | Subset


class Level(NamedTuple):
    """How much is computed."""

    retain_images: int  # retained training images used at most
    relearn_repeats: int  # fine-tunings averaged into a relearning curve, each with other batches
    relearn_mixed: bool  # also fine-tune on forget and retained images together
    heatmap_images: int  # forgotten-class test images that GradCAM looks at


LEVELS = {"quick": Level(2000, 1, False, 0), "full": Level(5000, 3, True, 64)}
RELEARN_IMAGES, WATCHED_IMAGES = 500, 200  # to fine-tune on, and to watch, of each kind
NEIGHBOUR_IMAGES = 200  # forget images beside which a change is looked for


@dataclass
class Comparison:
    """Everything that an evaluation reads.

    Attributes:
        original, unlearned: the model before and after.
        forget: the images of the request; views: unseen random crops of them, or None; relearn_on: what a relearner is
            given, in place of the images themselves.
        test, retain: labelled images; retain may be None.
        retrained: models trained without the forgotten classes; each score is a mean over them.
        beside: further unlearned models by name, rows of the same table.
        heads: model -> name of its classification head, None for a model without one; seen in a first pass.
        kept: the retained images that are used, as many as the level asks for.
        apart: which test images are no forget images, ``(N,)`` bool; known once the table is gathered, all until then.

    Raises:
        UnlearningError: a name that is taken, no test image of a retained class, retained images of forgotten classes,
            or a model whose outputs are not finite logits of its labels.
    """

    original: PixelClassifier
    unlearned: PixelClassifier
    forget_ids: list[int]
    label_names: list[str]
    forget: PixelDataset
    test: EvalDataset
    accelerator: Accelerator
    views: PixelDataset | None = None
    relearn_on: PixelDataset | None = None
    retain: EvalDataset | None = None
    retrained: list[PixelClassifier] = field(default_factory=list)
    beside: dict[str, PixelClassifier] = field(default_factory=dict)
    level: str = "quick"
    seed: int = 0
    quiet: bool = True
    heads: dict[str, str | None] = field(init=False, default_factory=dict)
    kept: Subset | None = field(init=False, default=None)
    apart: Tensor = field(init=False)

    def __post_init__(self):
        check_choice("level", self.level, LEVELS)
        check_range("seed", self.seed, whole=True, least=0, most=2**32 - 1)
        taken = [name for name in self.beside if name in MODELS or name.startswith("retrained ")]
        if taken:
            raise UnlearningError(f"the name {taken[0]!r} has a row of its own: give the model beside another name.")
        if self.gone(self.test).all():
            raise UnlearningError(
                f"the test set holds no image of a retained class, only {len(self.test)} of forgotten ones: add some"
                " to the test_dataset, to see what it cost."
            )
        if self.retain is not None:
            if (gone := self.gone(self.retain)).any():
                raise UnlearningError(
                    f"the retain set holds {int(gone.sum())} images of forgotten classes, first image"
                    f" {int(gone.nonzero()[0])}: keep only images of retained classes."
                )
            self.kept = Subset(self.retain, drawn(len(self.retain), LEVELS[self.level].retain_images, self.seed))
        self.apart = torch.ones(len(self.test), dtype=torch.bool)
        sample = stacked(self.test, range(min(2, len(self.test))))[0]
        for name, model in self.models.items():
            check_outputs(model, sample, f"{name} model", "test images")
            layers = constrained_layers(model.model, partial(model, to_unit(sample, model.device)))
            self.heads[name] = head_name(layers, len(self.label_names))

    @property
    def references(self) -> dict[str, PixelClassifier]:
        """The retrained models under the names of their columns."""
        return {f"retrained {i + 1}": model for i, model in enumerate(self.retrained)}

    @property
    def models(self) -> dict[str, PixelClassifier]:
        """Every model that is run, by the name of its columns."""
        return {"original": self.original, **self.beside, "unlearned": self.unlearned, **self.references}

    def others(self, name: str) -> list[str]:
        """The retrained models that a model is compared with: all of them but itself."""
        return [reference for reference in self.references if reference != name]

    def gone(self, dataset: EvalDataset) -> Tensor:
        """Which images are of forgotten classes, ``(N,)`` bool."""
        return torch.isin(dataset.labels, torch.tensor(self.forget_ids))

    def run(self, report: UnlearningReport) -> Table:
        """Fill the report's rows, reasons, floors, verdicts, curves and counts; returns the table behind them."""
        table = self.gather()
        names, labels = list(table.logits), distinct(self.label_names)
        scores = each_shared(lambda name: table_scores(table, name, self.others(name)), names)
        rows = dict(zip(names, scores, strict=True))
        report.relearning, report.heatmaps = self.relearn(rows), self.look(rows)
        for row in rows.values():
            row["per_class"] = {labels[k]: a for k, a in row["per_class"].items()}
        means = {name: averaged([rows[r] for r in self.others(name)]) for name in names if self.others(name)}
        for name, gaps in {name: gap_scores(rows[name], mean) for name, mean in means.items()}.items():
            rows[name] |= gaps
        seeds = [rows.pop(name) for name in self.references]
        if seeds:
            rows["retrained"] = averaged(seeds)
        report.reasons, report.row_reasons = with_reasons(rows, self.given(table), len(seeds))
        report.left_out_tests = int((~self.apart).sum())
        report.reasons = reasons_told(report.reasons, report.left_out_tests)
        least = least_tolerances(table)
        report.floors = {s: floor([row.get(s) for row in seeds], s in PAIRWISE, least[s]) for s in METRICS}
        report.verdicts = {
            name: {s: verdict(s, row[s], rows["original"][s], report.floors[s]) for s in METRICS}
            for name, row in rows.items()
            if name not in ("original", "retrained")
        }
        report.rocs = {name: membership_roc(table, name) for name in names}
        report.images = {split: count for split in sorted(SPLITS) if (count := len(table.rows(split)))}
        report.level, report.retrained_models = self.level, len(seeds)
        report.models = {name: rows.get(name) for name in (*MODELS[:2], *self.beside, *MODELS[2:])}
        return table

    def gather(self) -> Table:
        """The table of every model, and of the masked one where there is something to mask: the original's columns with
        the forgotten logits at -inf; the features are the same. Beside what was given it holds neighbours of forget
        images, made on the original."""
        pixels, labels = self.some(self.forget, NEIGHBOUR_IMAGES)
        beside = PixelDataset(neighbours(self.original, pixels, labels)[0], labels)
        given = {TEST: self.test, FORGET: self.forget, RETAIN: self.kept, VIEWS: self.views, NEIGHBOURS: beside}
        parts = {name: part for name, part in given.items() if part is not None and len(part)}
        table = gather_table(self.models, parts, self.forget_ids, self.accelerator, self.heads, self.quiet)
        table, self.apart = without_forget_images(table, self.accelerator.is_main_process)
        if self.forget_ids:
            table.logits["masked"] = table.logits["original"].copy()
            table.logits["masked"][:, self.forget_ids] = -np.inf
            if "original" in table.features:
                table.features["masked"] = table.features["original"]
        return table

    def given(self, table: Table) -> set[str]:
        """What this evaluation has to offer, as keys of NEEDS."""
        splits = {"retain": [RETAIN], "forgotten": [TEST_FORGOTTEN], "views": [VIEWS]}
        splits["watched"] = [TEST_FORGOTTEN, VIEWS]
        held = {name: len(table.rows(*parts)) > 0 for name, parts in splits.items()}
        fewest = min(np.unique(table.references[table.rows(FORGET)], return_counts=True)[1], default=0)
        held |= {"five": fewest >= 5, "fifty": fewest >= 50}
        held |= {"retrained": bool(self.retrained), "head": self.heads["original"] is not None}
        return {name for name, there in held.items() if there} | {self.level}

    def relearn(self, rows: dict[str, Row]) -> dict[str, dict]:
        """Relearning curves by model, and their scores written into the rows."""
        taught, level = self.relearn_on or self.forget, LEVELS[self.level]
        watched = self.watched(TEST_FORGOTTEN, WATCHED_IMAGES, taught.labels)
        kept = self.watched(TEST_RETAINED, WATCHED_IMAGES)
        if watched is None and self.views is not None:
            watched = self.some(self.views, WATCHED_IMAGES)
        if watched is None or kept is None:
            return {}
        retain = self.some(self.kept, RELEARN_IMAGES) if level.relearn_mixed and self.kept is not None else None
        data = RelearnData(self.some(taught, RELEARN_IMAGES), watched, kept, retain)
        curves = relearn_all(self.models, data, level.relearn_repeats, self.seed, self.quiet)
        if "masked" in rows:
            curves["masked"] = curves["original"]  # its weights are the original's
        alone = {name: kinds["forget"]["acc_ut"] for name, kinds in curves.items()}
        for name, kinds in curves.items():
            curve = {"predictions": alone[name], "original": alone["original"][0]}
            others = [alone[r] for r in self.others(name)]
            scores = averaged([compute("relearning", references=r, **curve) for r in others or [alone[name]]])
            rows[name] |= scores if others else {key: value for key, value in scores.items() if key != "ain"}
            if "mixed" in kinds:
                rows[name]["relearn_mixed"] = float(np.mean(kinds["mixed"]["acc_ut"][1:]))
        return curves

    def look(self, rows: dict[str, Row]) -> dict[str, list]:
        """GradCAM of each model on forgotten-class test images, for their own label: mean map by model, and the
        similarity to the retrained models' written into the rows."""
        count, models = LEVELS[self.level].heatmap_images, self.models
        watched = self.watched(TEST_FORGOTTEN, count) if count else None
        if watched is None:
            return {}
        seen = {name: heatmap_layer(model, watched[0][:1]) for name, model in models.items()}
        layers = {name: layer for name, layer in seen.items() if layer is not None}
        if len(layers) < len(models):
            return {}
        maps = each_shared(lambda name: heatmaps(models[name], layers[name], *watched), models)
        if len({each.shape for each in maps}) > 1:  # other architectures have other grids
            return {}
        flat = {name: each.flatten(1).numpy() for name, each in zip(models, maps, strict=True)}
        for name in models:
            pairs = [{"predictions": flat[name], "references": flat[r]} for r in self.others(name)]
            if pairs:
                rows[name] |= averaged([compute("heatmap_similarity", **pair) for pair in pairs])
        rows["masked"]["gradcam_similarity"] = rows["original"].get("gradcam_similarity")
        return {name: each.mean(0).tolist() for name, each in zip(models, maps, strict=True)}

    def watched(self, split: str, most: int, among: Tensor | None = None) -> Images | None:
        """At most so many test images of forgotten or of retained classes, with labels out of ``among`` (a fine-tuning
        on one request's classes cannot bring back another's); None where there is none."""
        fits = (self.gone(self.test) == (split == TEST_FORGOTTEN)) & self.apart
        rows = (fits if among is None else fits & torch.isin(self.test.labels, among)).nonzero().squeeze(1)
        chosen = rows[drawn(len(rows), most, self.seed)].tolist()
        return stacked(self.test, chosen) if chosen else None

    def some(self, dataset: Labelled, most: int) -> Images:
        """At most so many images, drawn with the seed."""
        return stacked(dataset, drawn(len(dataset), most, self.seed))


def drawn(count: int, most: int, seed: int) -> list[int]:
    """At most ``most`` of ``count`` indices, in order, drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values.tolist()


def stacked(dataset: Labelled, rows: Sequence[int]) -> Images:
    """Some items as pixels ``(n, channels, H, W)`` and labels ``(n,)``."""
    items = [dataset[row] for row in rows]
    return torch.stack([item["pixels"] for item in items]), torch.stack([item["labels"] for item in items])
