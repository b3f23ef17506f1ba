"""From a model's id on the Hub to the id of one that has forgotten, with a card.

    hf auth login
    accelerate launch examples/unlearn_from_hub.py --model_name_or_path user/vit-cifar10 --dataset_name user/cifar10 \\
        --forget_classes cat --hub_model_id user/vit-cifar10-without-cat --push_to_hub

Without arguments it needs no network: it trains a small ViT on scikit-learn's digits, forgets the "3", and shows what a
push would upload. Every field of UnlearningConfig is an option.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import UnlearningConfig, UnlearningTrainer
from zspag_hf.cli.exit_status import reported
from zspag_hf.cli.jobs import DataArguments, Job, load_job, run
from zspag_hf.cli.parsing import parse_run
from zspag_hf.cli.running import MethodArguments
from zspag_hf.data.labels import rows_of_classes
from zspag_hf.trainer.publishing import copy_public


def digits_job(config: UnlearningConfig) -> Job:
    """A small ViT that reads digits, and the images of a 3."""
    train, test = digits_dataset()
    model, processor = digits_model(train.features["label"].names, config.seed)
    train_classifier(model, processor, train, [], config)
    return Job(model, processor, train.select(rows_of_classes(train, "label", range(10), [3])), test)


def publish(trainer: UnlearningTrainer) -> None:
    """Say where it was pushed, or show what would be."""
    if not trainer.is_world_process_zero():
        return
    if trainer.args.push_to_hub:  # the run has done it, when it was evaluated
        print(f"pushed: {trainer.hub_model_id}")
        return
    print("\nwithout --push_to_hub nothing was pushed. These files would be:")
    with tempfile.TemporaryDirectory() as public:
        copy_public(trainer.args.output_dir, public, "user/model")
        for path in sorted(path for path in Path(public).rglob("*") if path.is_file()):
            print(f"  {os.path.relpath(path, public):<40}{path.stat().st_size:>10} bytes")
    stays = sorted(name for name in os.listdir(trainer.args.output_dir) if name.startswith("_"))
    print(f"and these never: {', '.join(stays)}")


def main() -> None:
    """Run the command line."""
    data, beside, config, method = parse_run((DataArguments, MethodArguments), sys.argv[1:])
    own = data.model_name_or_path is not None
    if not own:
        folder = "outputs/from-hub" if config.output_dir == UnlearningConfig.output_dir else config.output_dir
        config = replace(config, forget_classes=["3"], output_dir=folder)
    job = load_job(data, config, method) if own else digits_job(config)
    trainer = run(job, config, method, beside.rows(), data.level)
    if trainer.is_world_process_zero():
        print(f"\n{trainer.report.summary()}\n\nmodel, report and card: {config.output_dir}")
    publish(trainer)


if __name__ == "__main__":
    reported(main)
