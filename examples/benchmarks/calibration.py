"""Does every score say what it is meant to? On scikit-learn's digits, several retrained models stand in for an
unlearned one in turn, measured against the others: right is a value within their floor. The original stands in too:
right is the verdict "not forgotten".

    python examples/benchmarks/calibration.py --retrained 6 --level full

The caveats in zspag_hf.metrics.METRICS come from this table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))

import transformers
from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import METRICS, evaluate_unlearning
from zspag_hf.metrics import NOT_FORGOTTEN

FORGOTTEN = 3


def trained(folder: Path, seed: int, drop: list[int], train) -> Path:
    """A classifier of that seed, trained once and kept in the folder."""
    if not folder.exists():
        options = SimpleNamespace(output_dir=str(folder), disable_tqdm=True, use_cpu=True, seed=seed)
        model, processor = digits_model(train.features["label"].names, seed)
        train_classifier(model, processor, train, drop, options).save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrained", type=int, default=6)
    parser.add_argument("--level", default="full")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/calibration"))
    arguments = parser.parse_args()
    if arguments.retrained < 4:
        sys.exit("error: --retrained must be at least 4: one stands in, three make the floor.")
    transformers.utils.logging.disable_progress_bar()
    train, test = digits_dataset()
    labels = train["label"][:]
    forget, retain = (
        train.select([i for i, label in enumerate(labels) if (label == FORGOTTEN) == gone]) for gone in (True, False)
    )
    original = trained(arguments.output_dir / "original", 0, [], train)
    models = [
        trained(arguments.output_dir / f"retrained-{seed}", seed, [FORGOTTEN], train)
        for seed in range(1, arguments.retrained + 1)
    ]
    counts = {score: {"judged": 0, "passed": 0, "caught": 0} for score in METRICS}
    for i, stand_in in enumerate(models):
        report = evaluate_unlearning(
            original,
            stand_in,
            forget,
            test,
            [FORGOTTEN],
            retain=retain,
            retrained=[m for m in models if m != stand_in],
            beside={"the original": original},
            level=arguments.level,
            seed=i,
            disable_progress=True,
        )
        for score, count in counts.items():
            floor, value = report.floors[score], report.models["unlearned"][score]
            if floor is not None and value is not None:
                count["judged"] += 1
                count["passed"] += abs(value - floor["mean"]) <= floor["tolerance"]
                count["caught"] += report.verdicts["the original"][score] == NOT_FORGOTTEN
    print(f"{'score':<22}{'retrained within floor':>24}{'original not forgotten':>24}{'meant to detect':>17}")
    for score, count in counts.items():
        if count["judged"]:
            passed, caught = (f"{count[key]}/{count['judged']}" for key in ("passed", "caught"))
            print(f"{score:<22}{passed:>24}{caught:>24}{'yes' if METRICS[score].detects else '':>17}")


if __name__ == "__main__":
    main()
