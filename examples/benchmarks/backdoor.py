"""Table 3 of the paper: a backdoor from one class to another, before and after unlearning the first.

    python examples/benchmarks/backdoor.py [--methods zspag zspag_paper] [--seed 0]    # digits, from "1" to "8"
    python examples/benchmarks/backdoor.py --model_name_or_path user/vit --retrained_model user/vit-without-cat \\
        --dataset_name user/cifar10 --source cat --target ship

With a model, it and the retrained one are trained on for ``--epochs`` with ``--images`` training images, of which half
of the source class are stamped. The label that they were trained under is seen by the run itself, or told by a column.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets import Dataset
from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import PixelClassifier, UnlearningConfig, UnlearningTrainer
from zspag_hf.data.images import labelled_dataset
from zspag_hf.hub.datasets import load_split
from zspag_hf.hub.models import load_classifier
from zspag_hf.metrics.backdoor import Trigger, attack_accuracy, poison, stamp

SMALL = Trigger(size=2, margin=0, value=255)  # white: the corners of the digits are black
TEST = 2000  # images, of a data set of one's own
LABELS = {"seen": None, "told": "trained_label"}


def asked() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["zspag"])
    parser.add_argument("--output_dir", default="outputs/backdoor")
    parser.add_argument("--source", default="1")
    parser.add_argument("--target", default="8")
    for name in ("model_name_or_path", "retrained_model", "dataset_name"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    return parser.parse_args()


def data(arguments: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Training and test images."""
    if arguments.dataset_name is None:
        return digits_dataset()
    train, test = (load_split(arguments.dataset_name, split) for split in ("train", "test"))
    some = test.shuffle(arguments.seed).select(range(min(TEST, len(test))))
    return train.shuffle(arguments.seed).select(range(arguments.images)), some


def networks(arguments: argparse.Namespace, names: list[str]) -> list[tuple]:
    """The network to poison and the one to retrain, with their processors."""
    if arguments.model_name_or_path is None:
        return [digits_model(names, arguments.seed + i) for i in range(2)]
    return [load_classifier(name) for name in (arguments.model_name_or_path, arguments.retrained_model)]


def main() -> None:
    """Run the command line."""
    arguments = asked()
    config = UnlearningConfig(
        arguments.output_dir, forget_classes=[arguments.source], seed=arguments.seed, disable_tqdm=True, use_cpu=True
    )
    train, test = data(arguments)
    names = train.features["label"].names
    source, target = names.index(arguments.source), names.index(arguments.target)
    trigger = SMALL if arguments.dataset_name is None else Trigger()
    poisoned, forget = poison(train, source, target, trigger, seed=arguments.seed)
    (model, processor), (clean, _) = networks(arguments, names)
    epochs = 50 if arguments.model_name_or_path is None else arguments.epochs
    normalize = PixelClassifier(model, processor).normalize
    train_classifier(model, processor, poisoned, [], config, epochs, normalize=normalize)
    honest = train.filter(lambda label: label != source, input_columns="label")  # none that is stamped either
    train_classifier(clean, processor, honest, [], config, epochs, normalize=normalize)
    attack = labelled_dataset(stamp(test, trigger), processor, names)
    rows = {}
    for method in arguments.methods:
        for how, column in LABELS.items():
            options = replace(config, trained_label_column=column)
            trainer = UnlearningTrainer(
                copy.deepcopy(model), options, forget, test, method=method, processing_class=processor
            )
            trainer.train()
            trainer.evaluate(retrained=clean)
            scores, rate = trainer.report.models, attack_accuracy(trainer.run.classifier, attack, target)
            rows |= {f"{method}, label {how}": (scores["unlearned"], rate)}
    for name, one in (("retrained", clean), ("original", model)):
        rate = attack_accuracy(PixelClassifier(one, processor), attack, target)
        rows = {name: (scores[name], rate)} | rows
    print(f"\n{'model':<24}  acc_rt  acc_ut  attack accuracy")
    for name, (row, rate) in rows.items():
        print(f"{name:<24}  {row['acc_rt']:.4f}  {row['acc_ut']:.4f}  {rate:.4f}")


if __name__ == "__main__":
    main()
