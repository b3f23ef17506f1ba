"""Run examples/unlearn_vit.py under several seeds, and print mean and spread of every row of its table.

    python examples/benchmarks/seeds.py --seeds 0 1 2
    python examples/benchmarks/seeds.py --seeds 0 1 2 --output_dir out -- --model_name_or_path user/model \\
        --dataset_name user/data --forget_classes cat --baselines few

What stands behind ``--`` goes to the example as it is. The seed changes the split into training and held-out forget
images, the order of the data, random views and, on digits, the classifier itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "unlearn_vit.py"
COLUMNS = ("acc_rt", "acc_ut", "acc_views", "js_ut", "recovery_5", "relearn", "probe_auc", "seconds")


def run(seed: int, folder: Path, options: list[str]) -> dict:
    """The report of one run."""
    out = folder / f"seed-{seed}"
    command = [sys.executable, EXAMPLE, "--seed", seed, "--output_dir", out, "--disable_tqdm", "true", *options]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "unlearning_report.json").read_text())


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def markdown(reports: list[dict]) -> str:
    """One row a model, one column a measure that every seed has."""
    rows = {}
    for name, first in reports[0]["models"].items():
        if first is None:
            continue
        columns = {key: [report["models"][name].get(key) for report in reports] for key in COLUMNS}
        rows[name] = {key: spread(v) for key, v in columns.items() if None not in v}
    used = [key for key in COLUMNS if any(key in row for row in rows.values())]
    lines = ["| model | " + " | ".join(used) + " |", "|---" * (len(used) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row.get(key, "-") for key in used) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/seeds"))
    parser.add_argument("options", nargs="*", help="options of the example, behind --")
    arguments = parser.parse_args()
    reports = [run(seed, arguments.output_dir, arguments.options) for seed in arguments.seeds]
    print(markdown(reports))
    for report in reports:
        times = {name: round(value, 1) for name, value in report["timings_s"].items()}
        print(f"\nseed {report['seed']}: {times}")
        if report["choice"]:
            choice = report["choice"]
            first, deep, last = choice["forget_probability"]
            print(
                f"  energy {choice['energy_threshold']:g}, learning rate {choice['learning_rate']:.3g},"
                f" {choice['whole_network_steps']} of {choice['steps']} steps on the whole network, probability of the"
                f" forgotten classes {first:.3f} -> {deep:.3f} -> {last:.4f}"
            )


if __name__ == "__main__":
    main()
