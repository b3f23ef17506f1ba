"""Figure 5 of the paper on scikit-learn's digits: accuracy against the radius of the attack, and against the proxies.

python examples/benchmarks/proxy_sweep.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import transformers
from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import UnlearningConfig, UnlearningTrainer
from zspag_hf.methods import ZSPAG
from zspag_hf.report.figures import accuracy_against

SWEEPS = {
    "attack_eps": ([0.02, 0.05, 0.1, 0.2, 0.4], "radius of the attack, share of the pixel range"),
    "proxies_per_class": ([3, 10, 30, 100], "proxies a retained class"),
}
FORGOTTEN = "3"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/proxy_sweep"))
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    train, test = digits_dataset()
    names = train.features["label"].names
    forget = train.filter(lambda label: names[label] == FORGOTTEN, input_columns="label")
    records: dict[str, list[dict]] = {name: [] for name in SWEEPS}
    for seed in arguments.seeds:
        config = UnlearningConfig(
            str(arguments.output_dir / "runs"), forget_classes=[FORGOTTEN], seed=seed, disable_tqdm=True, use_cpu=True
        )
        model, processor = digits_model(names, seed)
        train_classifier(model, processor, train, [], config)
        for option, (values, _) in SWEEPS.items():
            for value in values:
                method, start = ZSPAG(**{option: value}), copy.deepcopy(model)
                trainer = UnlearningTrainer(start, config, forget, method=method, processing_class=processor)
                trainer.train()
                metrics = trainer.predict(test).metrics
                success = trainer.report.proxies["attack_success_rate"]
                scores = {key: metrics[f"test_{key}"] for key in ("acc_rt", "acc_ut")}
                records[option].append({"x": value, "seed": seed, "attack_success_rate": success} | scores)
    for option, (_, title) in SWEEPS.items():
        accuracy_against(records[option], title).savefig(arguments.output_dir / f"{option}.png")
    (arguments.output_dir / "records.json").write_text(json.dumps(records, indent=1))
    for option, listed in records.items():
        for record in listed:
            print(option, {key: round(value, 4) for key, value in record.items()})


if __name__ == "__main__":
    main()
