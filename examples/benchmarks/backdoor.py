"""Table 3 of the paper on scikit-learn's digits: a backdoor from "1" to "8", before and after unlearning the "1".

python examples/benchmarks/backdoor.py [--methods zspag zspag_paper] [--seed 0]

The label that the stamped images were trained under is seen by the run itself, or told by a column.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import PixelClassifier, UnlearningConfig, UnlearningTrainer
from zspag_hf.data.images import labelled_dataset
from zspag_hf.metrics.backdoor import Trigger, attack_accuracy, poison, stamp

SOURCE, TARGET = 1, 8
TRIGGER = Trigger(size=2, margin=0, value=255)  # white: the corners of the digits are black
LABELS = {"seen": None, "told": "trained_label"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["zspag"])
    parser.add_argument("--output_dir", default="outputs/backdoor")
    arguments = parser.parse_args()
    config = UnlearningConfig(
        arguments.output_dir, forget_classes=[str(SOURCE)], seed=arguments.seed, disable_tqdm=True, use_cpu=True
    )
    train, test = digits_dataset()
    names = train.features["label"].names
    poisoned, forget = poison(train, SOURCE, TARGET, TRIGGER, seed=arguments.seed)
    model, processor = digits_model(names, arguments.seed)
    train_classifier(model, processor, poisoned, [], config)
    clean, processor = digits_model(names, arguments.seed + 1)
    retained = poisoned.filter(lambda label: label != SOURCE, input_columns="label").select(
        range(sum(label != SOURCE for label in train["label"][:]))
    )
    train_classifier(clean, processor, retained, [], config)  # without the source class, stamped or not
    attack = labelled_dataset(stamp(test, TRIGGER), processor, names)
    rows = {}
    for method in arguments.methods:
        for how, column in LABELS.items():
            options = replace(config, trained_label_column=column)
            trainer = UnlearningTrainer(
                copy.deepcopy(model), options, forget, test, method=method, processing_class=processor
            )
            trainer.train()
            trainer.evaluate(retrained=clean)
            scores, rate = trainer.report.models, attack_accuracy(trainer.run.classifier, attack, TARGET)
            rows |= {f"{method}, label {how}": (scores["unlearned"], rate)}
    for name, one in (("retrained", clean), ("original", model)):
        rate = attack_accuracy(PixelClassifier(one, processor), attack, TARGET)
        rows = {name: (scores[name], rate)} | rows
    print(f"\n{'model':<24}  acc_rt  acc_ut  attack accuracy")
    for name, (row, rate) in rows.items():
        print(f"{name:<24}  {row['acc_rt']:.4f}  {row['acc_ut']:.4f}  {rate:.4f}")


if __name__ == "__main__":
    main()
