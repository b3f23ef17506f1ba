"""The paper's tables in shape: every method on every bench, its learning rate chosen on validation data.

    python examples/benchmarks/tables.py                                  # digits, which needs nothing
    python examples/benchmarks/tables.py --benches digits cifar cifar-random --places places.json

``places.json`` says where data and models are, by Hub id or folder:

    {"cifar": {"data": "user/cifar10", "model": "user/vit", "classes": ["cat"], "retrained": ["user/vit-without-cat"]},
     "cifar-random": {"data": "user/cifar10", "model": "user/vit", "share": 0.1}}

Each run is kept in ``--output_dir``, so that an interrupted command goes on. Rates are chosen with the first seed only,
on half of the test split; the other half is reported, for all seeds. ``--budget cores`` is for two cores, ``gpu`` for
the published epochs and grids.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from benches import MORE_RATES, NO_RATE, OWN_RATE, RATES, Bench, load_benches, read_places
from measure import machine
from models import quiet_config, silence
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from zspag_hf import UnlearningTrainer, evaluate_unlearning
from zspag_hf.evaluation import PixelDataset
from zspag_hf.files import write_whole
from zspag_hf.metrics.rows import true_log_probs

GROUPS = ("zero-shot", "with retained data")
FORGOTTEN, LOST = 0.02, 0.02  # acc_ut that counts as forgotten; accuracy that an image request may cost


@dataclass(frozen=True)
class Budget:
    """rates to try; options of methods with retained data; images at most that a request forgets."""

    rates: tuple[float, ...]
    retained: dict


BUDGETS = {
    "cores": Budget(RATES, {"max_retain_samples": 4000, "num_train_epochs": 3}),
    "gpu": Budget(MORE_RATES, {}),
}


class Runner:
    """Runs one bench, a cell at a time."""

    def __init__(self, bench: Bench, budget: Budget, folder: Path, groups: list[str]):
        self.bench, self.budget, self.folder = bench, budget, folder / slug(bench.name)
        self.groups = {name: rows for name, rows in bench.rows.items() if name in groups}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parts = cache(bench.parts)

    def trainer(self, options: dict, seed: int, folder: str) -> UnlearningTrainer:
        (model, processor), (forget, retain) = self.bench.model(seed), self.parts(seed)
        config = quiet_config(forget_classes=self.bench.classes, seed=seed, output_dir=folder, **options)
        given = {"retain_dataset": retain if config.with_retain else None, "processing_class": processor}
        return UnlearningTrainer(model, config, forget, None, **given)

    def cell(self, row: str, options: dict, seed: int, rate: float | None) -> dict:
        """Accuracies on both halves, seconds, and the folder of the model; read where it was run before."""
        place = self.folder / slug(f"{row} {seed} {rate or ''}")
        known = place / "cell.json"
        if known.exists():
            return json.loads(known.read_text())
        options = options | ({} if rate is None else {"learning_rate": rate})
        with silence() as folder:
            config = quiet_config(forget_classes=self.bench.classes, output_dir=folder, **options)
            if config.with_retain:
                options = self.budget.retained | options
            start = time.perf_counter()
            trainer = self.trainer(options, seed, folder)
            trainer.train()
            seconds = trainer.timings["total"]
            record = {"row": row, "seed": seed, "rate": rate, "seconds": seconds, "model": str(place)}
            record["whole_seconds"] = time.perf_counter() - start
            record |= {half: self.scores(trainer, half) for half in ("validation", "test")}
            trainer.model.save_pretrained(place)
            trainer.processing_class.save_pretrained(place)
        write_whole(str(known), json.dumps(record).encode())
        return record

    def original(self, seed: int) -> dict:
        """The scores before anything is forgotten."""
        with silence() as folder:
            options = {"method": "random_labels"}
            trainer = self.trainer(options, seed, folder)
            return {half: self.scores(trainer, half) for half in ("validation", "test")}

    def scores(self, trainer: UnlearningTrainer, half: str) -> dict[str, float]:
        """acc_rt and acc_ut; for images ua, ta, and the AUC of the loss between them and unseen images."""
        data = self.pixels(trainer, half)
        logits = trainer.classifier.predict(data.pixels)
        right = (logits.argmax(1) == data.labels).double()
        gone = torch.isin(data.labels, torch.tensor(trainer.forget_ids, dtype=torch.long))
        if self.bench.classes is not None:
            return {"acc_rt": class_mean(right, data.labels, ~gone), "acc_ut": class_mean(right, data.labels, gone)}
        forget = trainer.forget
        own = trainer.classifier.predict(forget.images)
        members, others = (
            true_log_probs(found.numpy(), labels.numpy())
            for found, labels in ((own, forget.image_labels), (logits, data.labels))
        )
        truth = [1] * len(members) + [0] * len(others)
        auc = roc_auc_score(truth, [*members, *others])
        answered = float((own.argmax(1) == forget.image_labels).double().mean())
        return {"ta": float(right.mean()), "ua": 1 - answered, "auc": float(auc)}

    def pixels(self, trainer: UnlearningTrainer, half: str) -> PixelDataset:
        """Decoded once a bench: all its models share the processor."""
        if not hasattr(self, half):
            data = trainer.labelled(getattr(self.bench, half))
            items = data.__getitems__(list(range(len(data))))
            setattr(self, half, PixelDataset(torch.stack([item["pixels"] for item in items]), data.labels))
        return getattr(self, half)

    def rates(self, row: str, options: dict) -> list[float | None]:
        return [None] if row in OWN_RATE or options["method"] in NO_RATE else list(self.budget.rates)

    def frontier(self, row: str, options: dict, seed: int) -> list[dict]:
        return [self.cell(row, options, seed, rate) for rate in self.rates(row, options)]

    def run(self, seeds: list[int]) -> dict:
        """Every row at the rate chosen with the first seed, for all seeds, and the frontier that it was chosen from."""
        rows = {name: options for group in self.groups.values() for name, options in group.items()}
        before = self.original(seeds[0])
        found = {}
        for name, options in tqdm(rows.items(), desc=self.bench.name):
            frontier = self.frontier(name, options, seeds[0])
            best = chosen(frontier, before)
            found[name] = {"frontier": frontier, "rate": best["rate"]}
            found[name]["cells"] = [self.cell(name, options, seed, best["rate"]) for seed in seeds]
        return {"rows": found, "before": before}

    def evaluated(self, found: dict, seed: int, place: int) -> dict:
        """All rows of one seed in one report: :func:`zspag_hf.evaluate_unlearning`."""
        known = self.folder / f"report-{seed}.json"
        models = {name: row["cells"][place]["model"] for name, row in found["rows"].items()}
        if known.exists() and set(models) <= set(json.loads(known.read_text())):
            return json.loads(known.read_text())
        (model, processor), (forget, retain) = self.bench.model(seed), self.parts(seed)
        retrained = self.bench.retrained(seed)
        with silence():
            report = evaluate_unlearning(
                model,
                models.pop("ZS-PAG"),
                forget,
                self.bench.test,
                self.bench.classes,
                retain=retain,
                retrained=retrained or None,
                beside=models,
                processing_class=processor,
                seed=seed,
                disable_progress=True,
            )
        rows = {"ZS-PAG" if name == "unlearned" else name: row for name, row in report.models.items()}
        write_whole(str(known), json.dumps(rows).encode())
        return rows


def class_mean(right: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> float:
    """Mean over classes of the accuracy."""
    return statistics.mean(float(right[rows & (labels == k)].mean()) for k in labels[rows].unique())


def chosen(frontier: list[dict], before: dict) -> dict:
    """By the validation half alone. Classes: the best acc_rt among rates that forget, else the one that forgets most.
    Images: the AUC nearest to .5 among rates that cost little accuracy, else the most accurate one."""
    first = frontier[0]["validation"]
    if "acc_ut" in first:
        good = [cell for cell in frontier if cell["validation"]["acc_ut"] <= FORGOTTEN]
        if good:
            return max(good, key=lambda cell: cell["validation"]["acc_rt"])
        return min(frontier, key=lambda cell: cell["validation"]["acc_ut"])
    good = [cell for cell in frontier if cell["validation"]["ta"] >= before["validation"]["ta"] - LOST]
    if good:
        return min(good, key=lambda cell: abs(cell["validation"]["auc"] - 0.5))
    return max(frontier, key=lambda cell: cell["validation"]["ta"])


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


# ---------------------------------------------------------------------------------------------------------- the page


def spread(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def class_table(groups: dict, found: dict, reports: list[dict]) -> str:
    columns = ("acc_rt", "acc_ut", "js_ut", "mia_entropy", "relearn")
    lines = ["| method | rate | " + " | ".join(columns) + " | seconds |", "|---" * (len(columns) + 3) + "|"]

    def line(title: str, name: str, rate: str, seconds: str) -> str:
        cells = [spread([report[name].get(key) for report in reports if report.get(name)]) for key in columns]
        return f"| {title} | {rate} | " + " | ".join(cells) + f" | {seconds} |"

    lines += [line(name, name, "", "") for name in ("original", "masked", "retrained") if reports[0].get(name)]
    for group, rows in groups.items():
        lines.append(f"| *{group}* |" + " |" * (len(columns) + 2))
        for name in rows:
            row = found["rows"][name]
            seconds = statistics.mean(cell["seconds"] for cell in row["cells"])
            lines.append(line(name, name, "" if row["rate"] is None else f"{row['rate']:g}", f"{seconds:.1f}"))
    return "\n".join(lines)


def image_table(groups: dict, found: dict) -> str:
    columns = ("ua", "ta", "auc")
    lines = ["| method | rate | UA | TA | membership AUC | seconds |", "|---" * 6 + "|"]
    before = found["before"]["test"]
    lines.append("| original | | " + " | ".join(f"{before[key]:.3f}" for key in columns) + " | |")
    for group, rows in groups.items():
        lines.append(f"| *{group}* | | | | | |")
        for name in rows:
            row = found["rows"][name]
            cells = [spread([cell["test"][key] for cell in row["cells"]]) for key in columns]
            seconds = statistics.mean(cell["seconds"] for cell in row["cells"])
            lines.append(f"| {name} | {row['rate']:g} | " + " | ".join(cells) + f" | {seconds:.1f} |")
    return "\n".join(lines)


def frontiers(found: dict) -> str:
    """Every rate that was tried, on the validation half."""
    lines = ["| method | rate | scores on the validation half |", "|---|---|---|"]
    for name, row in found["rows"].items():
        for cell in row["frontier"]:
            scores = ", ".join(f"{key} {value:.3f}" for key, value in cell["validation"].items())
            rate = "own" if cell["rate"] is None else f"{cell['rate']:g}"
            lines.append(f"| {name} | {rate} | {scores} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benches", nargs="+", default=["digits"])
    parser.add_argument("--places", type=Path, help="JSON file: bench -> where its data and models are")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--budget", choices=BUDGETS, default="cores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tables"))
    arguments = parser.parse_args()
    for bench in load_benches(arguments.benches, read_places(arguments.places), arguments.output_dir):
        runner = Runner(bench, BUDGETS[arguments.budget], arguments.output_dir, arguments.groups)
        found = runner.run(arguments.seeds)
        text = f"# {bench.name}\n\n"
        if bench.classes is None:
            text += image_table(runner.groups, found)
        else:
            reports = [runner.evaluated(found, seed, place) for place, seed in enumerate(arguments.seeds)]
            text += class_table(runner.groups, found, reports)
        facts = machine()
        text += f"\n\n{facts['cpu']}, {facts['cores']} cores; seeds {arguments.seeds}; budget {arguments.budget}."
        text += f"\n\n## Rates\n\n{frontiers(found)}\n"
        write_whole(str(runner.folder / "table.md"), text.encode())
        print(text)


if __name__ == "__main__":
    main()
