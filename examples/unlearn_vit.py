"""Forget a class from an image classifier, and see what it cost.

    accelerate launch examples/unlearn_vit.py

needs no network: it trains a small ViT on scikit-learn's digits, and a reference without one class, forgets that class
with ZS-PAG, and prints the models side by side. With a model and a data set of your own:

    accelerate launch examples/unlearn_vit.py --model_name_or_path user/model --dataset_name user/data \\
        --forget_classes cat --output_dir outputs/without-cat

A YAML file may be the only argument. Every field of UnlearningConfig is an option.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from datasets import Dataset, load_dataset
from digits import digits_dataset, digits_model, train_classifier
from transformers import HfArgumentParser

from zspag_hf import UnlearningConfig, UnlearningError, UnlearningReport, UnlearningTrainer
from zspag_hf.checks import check_launch, check_same_labels
from zspag_hf.evaluation import LEVELS
from zspag_hf.labels import class_names, model_labels, reconcile_labels, resolve_classes, rows_of_classes
from zspag_hf.loading import load_classifier

FREE, PROJECTED = {"adaptive": False, "constraint": "none"}, {"adaptive": False, "constraint": "hard"}
FEW = {
    "random labels": {"method": "random_labels", **FREE},
    "ZS-PAG, paper's form": {"variant": "paper"},
    "ZS-PAG, last layer": {"scope": "head"},
}
ALL = {
    "random labels": {"method": "random_labels", **FREE},
    "random, projected": {"method": "random_labels", **PROJECTED},
    "second-best labels": {"prior": "second_best", "tilt": "none", **FREE},
    "second-best, proj.": {"prior": "second_best", "tilt": "none", **PROJECTED},
    "renormalised": {"tilt": "none", **FREE},
    "renormalised, proj.": {"tilt": "none", **PROJECTED},
    "ZS-PAG, free": FREE,
    "ZS-PAG, paper's form": {"variant": "paper"},
    "ZS-PAG, last layer": {"scope": "head"},
}
BASELINES = {"none": {}, "few": FEW, "all": ALL}


@dataclass
class ExampleArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the classifier; unset: train one on digits."}
    )
    train_split: str = field(default="train", metadata={"help": "Split that holds the images to forget."})
    test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on; forget images in it are left out."}
    )
    retrained_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Hub ids or folders of models trained without the classes, to compare with; best three."},
    )
    level: str = field(default="quick", metadata={"help": f"Of the evaluation: {' or '.join(LEVELS)}."})
    retain_in_evaluation: bool = field(
        default=False,
        metadata={"help": "Evaluate with the training split's other classes too; training never sees them."},
    )
    max_forget_samples: int | None = field(default=None, metadata={"help": "Use at most so many forget images."})
    label_mapping_file: str | None = field(
        default=None, metadata={"help": "JSON file: data set label -> model label, where names differ."}
    )
    baselines: str = field(
        default="none", metadata={"help": f"Also run: few ({'; '.join(FEW)}), or all ({'; '.join(ALL)})."}
    )


def parse(argv: list[str]) -> tuple[ExampleArguments, UnlearningConfig]:
    parser = HfArgumentParser((ExampleArguments, UnlearningConfig))
    if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(argv[0])
    return parser.parse_args_into_dataclasses(argv)


@dataclass
class Job:
    """Everything that a run needs: seconds hold training times that are known."""

    model: object
    processor: object
    forget: Dataset
    test: Dataset
    retain: Dataset | None = None
    retrained: list = field(default_factory=list)
    seconds: dict = field(default_factory=dict)
    mapping: dict | None = None


def prepare_digits(config: UnlearningConfig) -> Job:
    """Model, reference, data and training seconds, on scikit-learn's digits."""
    train, test = digits_dataset()
    names = train.features["label"].names
    gone = resolve_classes(config.forget_classes, names)
    models, seconds = {}, {}
    for name, drop in (("original", []), ("retrained", gone)):
        start = time.perf_counter()
        model, processor = digits_model(names, config.seed + (name == "retrained"))
        models[name] = train_classifier(model, processor, train, drop, config)
        seconds[name] = time.perf_counter() - start
    rows = rows_of_classes(train, "label", range(len(names)), gone)
    retain = train.select(sorted(set(range(len(train))) - set(rows)))
    return Job(models["original"], processor, train.select(rows), test, retain, [models["retrained"]], seconds)


def prepare_data(arguments: ExampleArguments, config: UnlearningConfig) -> Job:
    """Model, data and references as the arguments name them, loaded before anything is computed."""
    if config.dataset_name is None:
        raise UnlearningError("--model_name_or_path needs --dataset_name: the images to forget and to evaluate on.")
    model, processor = load_classifier(arguments.model_name_or_path)
    mapping_file = arguments.label_mapping_file
    try:
        mapping = json.loads(Path(mapping_file).read_text(encoding="utf-8")) if mapping_file else None
        data = load_dataset(config.dataset_name)
    except (OSError, ValueError) as error:
        raise UnlearningError(f"cannot read the data or the label mapping: {error}") from error
    for split in (arguments.train_split, arguments.test_split):
        if split not in data:
            raise UnlearningError(
                f"the data set has no split {split!r}, only {list(data)}: give --train_split and --test_split."
            )
    train, test = data[arguments.train_split], data[arguments.test_split]
    names = model_labels(model.config)
    gone = resolve_classes(config.forget_classes or [], names)
    listed = class_names(train, config.label_column_name)
    ids = reconcile_labels(listed, names, offset=config.label_offset, mapping=mapping)
    every = rows_of_classes(train, config.label_column_name, ids, gone)
    rows = every[: arguments.max_forget_samples]
    if arguments.train_split == arguments.test_split:
        if arguments.retain_in_evaluation:
            raise UnlearningError(
                f"--retain_in_evaluation with {arguments.train_split!r} as both splits would evaluate on the retained"
                " training images: give another --test_split."
            )
        test = test.select(sorted(set(range(len(test))) - set(rows)))
    retain = train.select(sorted(set(range(len(train))) - set(every))) if arguments.retain_in_evaluation else None
    for name in arguments.retrained_models:
        check_same_labels(load_classifier(name)[0].config, names)  # now, not after the training
    return Job(model, processor, train.select(rows), test, retain, arguments.retrained_models, {}, mapping)


def unlearn(job: Job, config: UnlearningConfig) -> UnlearningTrainer:
    trainer = UnlearningTrainer(
        job.model, config, job.forget, job.test, processing_class=job.processor, label_mapping=job.mapping
    )
    trainer.train()
    return trainer


def run(arguments: ExampleArguments, config: UnlearningConfig) -> None:
    for name, value, choices in (("baselines", arguments.baselines, BASELINES), ("level", arguments.level, LEVELS)):
        if value not in choices:
            raise UnlearningError(f"--{name} {value!r} is not one of {', '.join(choices)}.")
    if arguments.model_name_or_path is None and config.dataset_name is not None:
        raise UnlearningError("--dataset_name needs --model_name_or_path: the classifier that was trained on it.")
    own = arguments.model_name_or_path is not None
    if not own:
        folder = "outputs/digits" if config.output_dir == UnlearningConfig.output_dir else config.output_dir
        config = config.but(forget_classes=config.forget_classes or ["3"], output_dir=folder)
        arguments.baselines = "few" if arguments.baselines == "none" else arguments.baselines
    job = prepare_data(arguments, config) if own else prepare_digits(config)
    start = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    beside = {}
    for name, options in BASELINES[arguments.baselines].items():
        announce(name)
        trainer = unlearn(job, config.but(**options))
        beside[name], job.seconds[name] = copy.deepcopy(job.model), trainer.report.timings_s["total"]
        job.model.load_state_dict(start)
    announce("unlearning")
    trainer = unlearn(job, config)
    trainer.save_model()  # before the evaluation, which may still fail
    job.seconds |= {"unlearned": trainer.report.timings_s["total"], "masked": 0.0}
    trainer.evaluate(retain=job.retain, retrained=job.retrained, beside=beside, level=arguments.level)
    for name, row in trainer.report.models.items():
        if row is not None:
            row["seconds"] = job.seconds.get(name)
    trainer.save_model()
    if trainer.is_world_process_zero():
        show(trainer.report, config.output_dir)


def show(report: UnlearningReport, folder: str) -> None:
    gone = ", ".join(c["label"] for c in report.forget_classes)
    print(f"\n{report.table()}")
    print(f"\nforgotten: {gone} ({report.forget_images} images)\n\n{report.summary()}\n")
    print(f"model, processor and report: {folder}")


def announce(name: str) -> None:
    """Say, once for all processes, what runs next."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n--- {name}")


def main() -> None:
    try:
        arguments, config = parse(sys.argv[1:])
        check_launch(config.distributed_state)
        if config.disable_tqdm:
            transformers.utils.logging.disable_progress_bar()
        run(arguments, config)
    except UnlearningError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
