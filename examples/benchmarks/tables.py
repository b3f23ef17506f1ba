"""The paper's tables in shape: every method on every bench, its learning rate chosen on validation data.

    python examples/benchmarks/tables.py                                  # digits, which needs nothing
    python examples/benchmarks/tables.py --benches digits-random-10 digits-random-50  # images whose classes stay
    python examples/benchmarks/tables.py --benches cifar cifar-random faces --places places.json

``places.json`` says where data and models are, by Hub id or folder, or which network to train, once for each seed, with
models that are retrained without what is forgotten:

    {"cifar": {"data": "user/cifar10", "model": "user/vit", "classes": ["cat"], "retrained": ["user/vit-without-cat"]},
     "cifar-random": {"data": "user/cifar10", "model": "user/vit", "share": 0.1},
     "faces": {"data": "user/faces", "train": "resnet", "classes": ["ada", "grace"], "side": 64, "epochs": 100},
     "digits of a VGG": {"data": "digits", "train": "vgg", "classes": ["3"]},
     "cifar by heart": {"data": "user/cifar10", "train": "resnet", "share": 0.1, "images": 10000, "epochs": 20,
                        "augment": false}}

With ``"published": "CIFAR-10"`` in an entry the paper's figures for that data set stand beside.

Of images at random a table has AMUN's columns where there are retrained models: UA, accuracy on other training images
(RA) and on test images (TA), the ROC area of RMIA between forgotten and test images, and the mean distance of the four
from a retrained model's, by which rates are chosen then; on the row of the retrained models the mean distance of one
from the others.

Each run is kept in ``--output_dir``, so that an interrupted command goes on. Rates are chosen with the first seed only,
on half of the test split; the other half is reported, for all seeds. Beside the point at acc_ut .02 at most stands
that of .05, which most published rows have, with the first seed alone. ``--budget cores`` is for two cores, ``small``
for as many with few training images (the published epochs on all of them), ``gpu`` for the published epochs and a wider
grid.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from benches import (
    BATCHES,
    MORE_RATES,
    RATES,
    STRONG_RATES,
    Bench,
    Groups,
    load_benches,
    read_places,
    slug,
)
from datasets import Dataset
from measure import machine
from models import give_run, quiet_config, silence
from pages import PUBLISHED, average_gap, class_table, frontiers, image_table
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from zspag_hf import UnlearningTrainer, evaluate_unlearning
from zspag_hf.errors import UnlearningError
from zspag_hf.evaluation import PixelDataset
from zspag_hf.methods import GKT, ZSPAG, Method, RandomLabels, Run, ZSPAGPaper, method_name
from zspag_hf.metrics import METRICS, compute
from zspag_hf.metrics.rows import FORGET, TEST_RETAINED, true_log_probs
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.report.files import write_whole

GROUPS = ("zero-shot", "with retained data")
SLOW_GROUPS = ("zero-shot, generated images",)  # by the thousand: only when asked for
FORGOTTEN, LOST = 0.02, 0.02  # acc_ut that counts as forgotten; accuracy that an image request may cost
NEARLY = 0.05  # acc_ut that most published rows have
RETAINED_IMAGES = 5000  # at most, that RA is measured on


@dataclass(frozen=True)
class Budget:
    """rates to try; options of methods with retained data, for those that have them."""

    rates: tuple[float, ...]
    retained: dict


BUDGETS = {
    "cores": Budget(RATES, {"max_retain_samples": 4000, "num_train_epochs": 3}),
    "small": Budget(RATES, {}),
    "gpu": Budget(MORE_RATES, {}),
}


def of_names(groups: Groups, names: list[str]) -> Groups:
    """The rows of these names alone.

    Raises:
        UnlearningError: a name that no row has.
    """
    known = [name for rows in groups.values() for name in rows]
    for name in names:
        if name not in known:
            raise UnlearningError(f"there is no row {name!r}: give some of {', '.join(known)}.")
    few = {group: {n: rows[n] for n in rows if n in names} for group, rows in groups.items()}
    return {group: rows for group, rows in few.items() if rows}


def with_options(method: Method, **options) -> Method:
    """The method with those of the options that it has."""
    own = {one.name for one in fields(method)}
    return replace(method, **{name: value for name, value in options.items() if name in own})


@dataclass
class SharingRun(Run):
    """Makes AMUN's adversaries, which do not depend on the rate, once for all runs of a seed; each run counts the time
    that they took.

    Attributes:
        searches: seed -> seconds, tensors and facts.
    """

    searches: dict[int, tuple[float, dict, dict]] = field(default_factory=dict)

    def stage(self, name, make, under=None):
        """As every run, but for the adversaries."""
        if name != "adversaries":
            return super().stage(name, make, under)
        if self.seed not in self.searches:
            start = time.perf_counter()
            tensors, facts = make()
            self.searches[self.seed] = (time.perf_counter() - start, tensors, facts)
        seconds, tensors, facts = self.searches[self.seed]
        self.timings[under or name] = self.timings.get(under or name, 0.0) + seconds
        return tensors, facts


class Runner:
    """Runs one bench, a cell at a time."""

    def __init__(self, bench: Bench, budget: Budget, folder: Path, groups: list[str], rows: list[str] | None = None):
        self.bench, self.budget, self.folder = bench, budget, folder / slug(bench.name)
        self.groups = {name: methods for name, methods in bench.rows.items() if name in groups}
        if rows is not None:
            self.groups = of_names(self.groups, rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parts, self.retrained = cache(bench.parts), cache(bench.retrained)
        self.known: dict[tuple, PixelDataset | np.ndarray] = {}
        self.searches: dict[int, tuple] = {}

    def trainer(self, method: Method, seed: int, folder: str) -> UnlearningTrainer:
        """Of one cell; its result goes nowhere by itself."""
        (model, processor), (forget, retain) = self.bench.model(seed), self.parts(seed)
        config = quiet_config(forget_classes=self.bench.classes, seed=seed, output_dir=folder)
        given = {"retain_dataset": retain if method.reads_retained else None, "processing_class": processor}
        trainer = UnlearningTrainer(model, config, forget, None, method=method, **given)
        give_run(trainer, SharingRun, searches=self.searches)
        return trainer

    def cell(self, row: str, method: Method, seed: int, rate: float | None) -> dict:
        """Accuracies on both halves, seconds, and the folder of the model; read where it was run before.

        Raises:
            UnlearningError: the method's own.
            ValueError: the folder holds a run of other options.
        """
        place = self.folder / slug(f"{row} {seed} {rate or ''}")
        known = place / "cell.json"
        if method.reads_retained:
            method = with_options(method, **self.budget.retained | method.given())
        method = method if rate is None else replace(method, learning_rate=rate)
        options = {"method": method_name(method)} | method.to_dict()
        if known.exists():
            record = json.loads(known.read_text())
            if record["options"] != options:
                raise ValueError(f"{place} holds a run with {record['options']}, not {options}: give a new folder.")
            return record
        with silence() as folder:
            start = time.perf_counter()
            trainer = self.trainer(method, seed, folder)
            trainer.train()
            seconds = sum(took for stage, took in trainer.run.timings.items() if stage != "total")
            record = {"row": row, "seed": seed, "rate": rate, "options": options, "seconds": seconds}
            record["model"] = str(place)
            record["whole_seconds"] = time.perf_counter() - start
            record |= {half: self.scores(trainer, half) for half in ("validation", "test")}
            if trainer.report.proxies is not None:
                record["attack_success_rate"] = trainer.report.proxies["attack_success_rate"]
            trainer.model.save_pretrained(place)
            trainer.processing_class.save_pretrained(place)
        write_whole(str(known), json.dumps(record).encode())
        return record

    def attempt(self, row: str, method: Method, seed: int, rate: float | None) -> dict:
        """A cell, or why there is none."""
        try:
            return self.cell(row, method, seed, rate)
        except UnlearningError as error:
            return {"row": row, "seed": seed, "rate": rate, "error": str(error)}

    def original(self, seed: int) -> dict:
        """The scores before anything is forgotten."""
        with silence() as folder:
            trainer = self.trainer(RandomLabels(), seed, folder)
            return {half: self.scores(trainer, half) for half in ("validation", "test")}

    def retrained_scores(self, seed: int, half: str = "test") -> list[dict[str, float]]:
        """Of each retrained model of an image bench."""
        with silence() as folder:
            trainer = self.trainer(RandomLabels(), seed, folder)
            device, processor = trainer.args.device, trainer.processing_class
            models = [PixelClassifier(model.to(device).eval(), processor) for model in self.retrained(seed)]
            return [self.scores(trainer, half, model) for model in models]

    def scores(
        self, trainer: UnlearningTrainer, half: str, classifier: PixelClassifier | None = None
    ) -> dict[str, float]:
        """acc_rt and acc_ut; for images ua, ta, and the AUC of the loss between them and unseen images, with retrained
        models also ra and rmia.

        Args:
            classifier: another than the trainer's, on the same images.
        """
        classifier, run = classifier or trainer.run.classifier, trainer.run
        data = self.pixels(trainer, half)
        logits = classifier.predict(data.pixels)
        right = (logits.argmax(1) == data.labels).double()
        gone = torch.isin(data.labels, torch.tensor(run.forget_ids, dtype=torch.long))
        if self.bench.classes is not None:
            return {"acc_rt": class_mean(right, data.labels, ~gone), "acc_ut": class_mean(right, data.labels, gone)}
        forget = PixelDataset(run.forget.images, run.forget.image_labels)
        own = classifier.predict(forget.pixels)
        members, others = (
            true_log_probs(answers.numpy(), part.labels.numpy()) for answers, part in ((own, forget), (logits, data))
        )
        truth = [1] * len(members) + [0] * len(others)
        auc = roc_auc_score(truth, [*members, *others])
        scores = {"ta": float(right.mean()), "ua": 1 - accuracy(own, forget), "auc": float(auc)}
        if not self.retrained(trainer.args.seed):
            return scores
        kept = self.kept(trainer)
        scores["ra"] = accuracy(classifier.predict(kept.pixels), kept)
        return scores | {"rmia": self.rmia(trainer, half, (forget, data), (own, logits))}

    def rmia(self, trainer: UnlearningTrainer, half: str, parts: tuple, logits: tuple) -> float:
        """ROC area of RMIA between the forget images and test images, the ``parts``, of a model's ``logits`` on each.

        AMUN's authors score online, with 128 reference models of random halves of all images; here it is offline, with
        few models that trained on none of these images.
        """
        key = ("references", trainer.args.seed, half)
        if key not in self.known:
            device, processor = trainer.args.device, trainer.processing_class
            models = [
                PixelClassifier(model.to(device).eval(), processor)
                for model in self.bench.references(trainer.args.seed)
            ]
            columns = [
                np.concatenate([true_log_probs(model.predict(part.pixels), part.labels) for part in parts])
                for model in models
            ]
            self.known[key] = np.stack(columns, 1)
        splits = np.repeat([FORGET, TEST_RETAINED], [len(part) for part in parts])
        return compute(
            "rmia",
            predictions=torch.cat(logits).numpy(),
            references=torch.cat([part.labels for part in parts]).numpy(),
            splits=splits,
            reference_log_probs=self.known[key],
        )["rmia_auc"]

    def pixels(self, trainer: UnlearningTrainer, half: str) -> PixelDataset:
        """Decoded once a bench: all its models share the processor."""
        if (half,) not in self.known:
            self.known[half,] = decoded(trainer, getattr(self.bench, half))
        return self.known[half,]

    def kept(self, trainer: UnlearningTrainer) -> PixelDataset:
        """Training images that stay, decoded once a seed."""
        seed = trainer.args.seed
        if ("kept", seed) not in self.known:
            retain = self.parts(seed)[1]
            rows = np.random.default_rng(seed).permutation(len(retain))[:RETAINED_IMAGES]
            self.known["kept", seed] = decoded(trainer, retain.select(sorted(rows)))
        return self.known["kept", seed]

    def rates(self, method: Method) -> list[float | None]:
        """The budget's, or larger ones under a hard constraint, and the published one; None where the run chooses its
        own, the method takes no steps, or its rate stays: the paper's preset, and with GKT the published one."""
        if isinstance(method, (ZSPAG, ZSPAGPaper, GKT)) or not method.trains:
            return [None]
        hard = getattr(method, "constraint", "none") == "hard"
        return sorted({*(STRONG_RATES if hard else self.budget.rates), self.published(method)[0]})

    def published(self, method: Method) -> tuple[float | None, int | None]:
        """Rate of a method, None where it has none, and the size of the batches that it was published with."""
        own = method.completed(quiet_config(), self.bench.model(0)[0].config.num_labels)[0]
        return getattr(own, "learning_rate", None), BATCHES.get(type(method))

    def frontier(self, row: str, method: Method, seed: int) -> list[dict]:
        """A cell for each rate."""
        return [self.attempt(row, method, seed, rate) for rate in self.rates(method)]

    def run(self, seeds: list[int]) -> dict:
        """Every row at the rate chosen with the first seed, for all seeds, and the frontier that it was chosen from."""
        methods = {name: method for group in self.groups.values() for name, method in group.items()}
        before = self.original(seeds[0])
        aim = self.retrained_scores(seeds[0], "validation") if self.bench.classes is None else []
        rows = {}
        for name, method in tqdm(methods.items(), desc=self.bench.name):
            frontier = self.frontier(name, method, seeds[0])
            rows[name] = {"frontier": frontier, "rate": None, "cells": [], "published": self.published(method)}
            ended = [cell for cell in frontier if "error" not in cell]
            if ended:
                rate = rows[name]["rate"] = chosen(ended, before, aim)["rate"]
                rows[name]["cells"] = [self.attempt(name, method, seed, rate) for seed in seeds]
                rows[name]["nearly"] = chosen(ended, before, aim, NEARLY)
        results = {"rows": rows, "before": before}
        if self.bench.classes is None:
            results["originals"] = [self.original(seed)["test"] for seed in seeds]
            results["retrained"] = [self.retrained_scores(seed) for seed in seeds]
        return results

    def evaluated(self, results: dict, seed: int, place: int) -> dict:
        """All rows of one seed in one report: :func:`zspag_hf.evaluate_unlearning`; those without an error."""
        known = self.folder / f"report-{seed}.json"
        cells = {name: row["cells"][place] for name, row in results["rows"].items() if row["cells"]}
        models = {name: cell["model"] for name, cell in cells.items() if "error" not in cell}
        if known.exists():
            rows = json.loads(known.read_text())
            current = set(METRICS) <= set(rows["original"])  # else of a version with fewer scores
            if current and all(rows.get(name, {}).get("model") == model for name, model in models.items()):
                return rows
        (model, processor), (forget, retain) = self.bench.model(seed), self.parts(seed)
        retrained = self.retrained(seed)
        first, *others = models
        with silence():
            report = evaluate_unlearning(
                model,
                self.bench.saved(models[first]),
                forget,
                self.bench.test,
                self.bench.classes,
                retain=retain,
                retrained=retrained or None,
                beside={name: self.bench.saved(models[name]) for name in others},
                processing_class=processor,
                seed=seed,
                disable_progress=True,
            )
        rows = {first if name == "unlearned" else name: row for name, row in report.models.items()}
        for name, model in models.items():
            rows[name]["model"] = model
        write_whole(str(known), json.dumps(rows).encode())
        return rows


def decoded(trainer: UnlearningTrainer, dataset: Dataset) -> PixelDataset:
    """All images of a data set as pixels."""
    data = trainer.inputs.labelled(dataset)
    items = data.__getitems__(list(range(len(data))))
    return PixelDataset(torch.stack([item["pixels"] for item in items]), data.labels)


def accuracy(logits: torch.Tensor, data: PixelDataset) -> float:
    """Share of right answers, in [0, 1]."""
    return float((logits.argmax(1) == data.labels).double().mean())


def class_mean(right: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> float:
    """Mean over classes of the accuracy."""
    return statistics.mean(float(right[rows & (labels == k)].mean()) for k in labels[rows].unique())


def chosen(frontier: list[dict], before: dict, retrained: Sequence[dict] = (), forgotten: float = FORGOTTEN) -> dict:
    """By the validation half alone. Classes: the best acc_rt among rates that forget, to an acc_ut of ``forgotten`` at
    most, else the one that forgets most.
    Images: the least Avg. Gap where there are retrained models' scores, as the methods' authors choose; else the AUC
    nearest to .5 among rates that cost little accuracy, else the most accurate one."""
    first = frontier[0]["validation"]
    if retrained:
        return min(frontier, key=lambda cell: average_gap(cell["validation"], retrained))
    if "acc_ut" in first:
        good = [cell for cell in frontier if cell["validation"]["acc_ut"] <= forgotten]
        if good:
            return max(good, key=lambda cell: cell["validation"]["acc_rt"])
        return min(frontier, key=lambda cell: cell["validation"]["acc_ut"])
    good = [cell for cell in frontier if cell["validation"]["ta"] >= before["validation"]["ta"] - LOST]
    if good:
        return min(good, key=lambda cell: abs(cell["validation"]["auc"] - 0.5))
    return max(frontier, key=lambda cell: cell["validation"]["ta"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benches", nargs="+", default=["digits"])
    parser.add_argument("--places", type=Path, help="JSON file: bench -> where its data and models are")
    parser.add_argument("--groups", nargs="+", choices=GROUPS + SLOW_GROUPS, default=list(GROUPS))
    parser.add_argument("--rows", nargs="+", help="of these groups only the rows of these names")
    parser.add_argument("--budget", choices=BUDGETS, default="cores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tables"))
    arguments = parser.parse_args()
    for bench in load_benches(arguments.benches, read_places(arguments.places), arguments.output_dir):
        runner = Runner(bench, BUDGETS[arguments.budget], arguments.output_dir, arguments.groups, arguments.rows)
        results = runner.run(arguments.seeds)
        text = f"# {bench.name}\n\n"
        if bench.classes is None:
            text += image_table(runner.groups, results)
        else:
            reports = [runner.evaluated(results, seed, place) for place, seed in enumerate(arguments.seeds)]
            text += class_table(runner.groups, results, reports, PUBLISHED.get(bench.published))
        facts = machine()
        text += f"\n\n{facts['cpu']}, {facts['cores']} cores; seeds {arguments.seeds}; budget {arguments.budget}."
        text += f"\n\n## Rates\n\n{frontiers(results)}\n"
        write_whole(str(runner.folder / "table.md"), text.encode())
        print(text)


if __name__ == "__main__":
    main()
