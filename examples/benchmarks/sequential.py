"""Three digits forgotten one request after the other, beside all three at once from the same classifier.

    python examples/benchmarks/sequential.py --seeds 0 1

Each request is saved, and the next one knows its folder alone. Both results stand in one report, that of all at once,
so that ``recovery_5`` and ``relearn`` are measured alike: on the forget images of all three digits.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from datasets import Dataset
from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import UnlearningConfig, UnlearningTrainer
from zspag_hf.data.labels import rows_of_classes
from zspag_hf.metrics.rows import TEST_FORGOTTEN

DIGITS = ["3", "5", "8"]
COLUMNS = ("acc_rt", "acc_ut", "answered", "recovery_5", "relearn")
ROWS = {
    "original": "original",
    "one after the other": "one after the other",
    "unlearned": "all at once",
    "retrained 1": "retrained without them",
}


def unlearn(source: str, digits: list[str], train: Dataset, test: Dataset, config: UnlearningConfig):
    """The trainer of one request on a saved classifier, its result in ``config.output_dir``."""
    names = train.features["label"].names
    rows = rows_of_classes(train, "label", range(len(names)), [names.index(digit) for digit in digits])
    trainer = UnlearningTrainer(source, replace(config, forget_classes=digits), train.select(rows), test)
    trainer.train()
    trainer.save_model()
    return trainer


def answered(trainer: UnlearningTrainer, name: str) -> float:
    """Share in [0, 1] of the test pictures of forgotten digits that a model answers with a forgotten digit."""
    answers = trainer.table.logits[name][trainer.table.rows(TEST_FORGOTTEN)].argmax(1)
    return float(np.isin(answers, trainer.run.forget_ids).mean())


def run(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Row of the table -> column -> value."""
    train, test = digits_dataset()
    config = UnlearningConfig(str(folder / "training"), seed=seed, report_to="none", disable_tqdm=True, use_cpu=True)
    model, processor = digits_model(train.features["label"].names, seed)
    train_classifier(model, processor, train, [], config)
    start = source = str(folder / "original")
    model.save_pretrained(start)
    processor.save_pretrained(start)
    for number, digit in enumerate(DIGITS, 1):
        out = str(folder / f"request-{number}")
        unlearn(source, [digit], train, test, replace(config, output_dir=out))
        source = out
    together = unlearn(start, DIGITS, train, test, replace(config, output_dir=str(folder / "at-once")))
    clean, _ = digits_model(train.features["label"].names, seed + 100)
    gone = [train.features["label"].names.index(digit) for digit in DIGITS]
    train_classifier(clean, processor, train, gone, replace(config, seed=seed + 100))
    together.evaluate(beside={"one after the other": source}, retrained=clean)
    together.save_model()  # again, now that its report has rows
    models = together.report.models
    models["retrained 1"] = models["retrained"]  # its name among the logits
    return {title: models[name] | {"answered": answered(together, name)} for name, title in ROWS.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/sequential"))
    arguments = parser.parse_args()
    results = {seed: run(seed, arguments.output_dir / f"seed-{seed}") for seed in arguments.seeds}
    print(f"\nanswered: share of the test pictures of {', '.join(DIGITS)} that are answered with one of them")
    for seed, rows in results.items():
        print(f"\n| seed {seed} | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
        for title, row in rows.items():
            print(f"| {title} | " + " | ".join(f"{row[column]:.4f}" for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
