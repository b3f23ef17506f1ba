"""Forget a class from an image classifier, and see what it cost.

    accelerate launch examples/unlearn_vit.py

needs no network: it trains a small ViT on scikit-learn's digits, and a reference without one class, forgets that class
with ZS-PAG, and prints the models side by side. With a model and a data set of your own:

    accelerate launch examples/unlearn_vit.py --model_name_or_path user/model --dataset_name user/data \\
        --forget_classes cat --output_dir outputs/without-cat

A YAML file may be the only argument. Every field of UnlearningConfig is an option.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from datasets import load_dataset
from digits import digits_dataset, digits_model, train_classifier
from transformers import HfArgumentParser

from zspag_hf import UnlearningConfig, UnlearningError, UnlearningTrainer
from zspag_hf.checks import check_launch
from zspag_hf.classifier import load_classifier
from zspag_hf.labels import class_names, model_labels, reconcile_labels, resolve_classes, rows_of_classes

BASELINES = {
    "random labels, unconstrained": {"method": "random_labels", "constraint": "none"},
    "ZS-PAG, the paper's literal form": {"variant": "paper"},
    "ZS-PAG, last layer only": {"scope": "head"},
}


@dataclass
class ExampleArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the classifier; unset: train one on digits."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, or a folder with parquet files or images."}
    )
    train_split: str = field(default="train", metadata={"help": "Split that holds the images to forget."})
    test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on; forget images in it are left out."}
    )
    retrained_model: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a model trained without the classes, to compare with."}
    )
    max_forget_samples: int | None = field(default=None, metadata={"help": "Use at most so many forget images."})
    label_mapping_file: str | None = field(
        default=None, metadata={"help": "JSON file: data set label -> model label, where names differ."}
    )
    baselines: bool = field(
        default=False, metadata={"help": f"Also run: {'; '.join(BASELINES)}. Always on without a model."}
    )


def parse(argv: list[str]) -> tuple[ExampleArguments, UnlearningConfig]:
    parser = HfArgumentParser((ExampleArguments, UnlearningConfig))
    if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(argv[0])
    return parser.parse_args_into_dataclasses(argv)


def prepare_digits(config: UnlearningConfig):
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
    forget = train.select(rows_of_classes(train, "label", range(len(names)), gone))
    return models["original"], processor, forget, test, models["retrained"], seconds, None


def prepare_data(arguments: ExampleArguments, config: UnlearningConfig):
    """Model, data and reference as the arguments name them, loaded before anything is computed."""
    if arguments.dataset_name is None:
        raise UnlearningError("--model_name_or_path needs --dataset_name: the images to forget and to evaluate on.")
    model, processor = load_classifier(arguments.model_name_or_path)
    retrained = load_classifier(arguments.retrained_model)[0] if arguments.retrained_model else None
    mapping_file = arguments.label_mapping_file
    try:
        mapping = json.loads(Path(mapping_file).read_text(encoding="utf-8")) if mapping_file else None
        data = load_dataset(arguments.dataset_name)
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
    ids = reconcile_labels(
        class_names(train, config.label_column_name), names, offset=config.label_offset, mapping=mapping
    )
    rows = rows_of_classes(train, config.label_column_name, ids, gone)[: arguments.max_forget_samples]
    if arguments.train_split == arguments.test_split:
        test = test.select(sorted(set(range(len(test))) - set(rows)))
    return model, processor, train.select(rows), test, retrained, {}, mapping


def unlearn(
    model, processor, forget, test, config: UnlearningConfig, retrained, mapping, keep: bool
) -> UnlearningTrainer:
    trainer = UnlearningTrainer(model, config, forget, test, processing_class=processor, label_mapping=mapping)
    trainer.train()
    if keep:
        trainer.save_model()  # before the evaluation, which may still fail
    trainer.evaluate(retrained=retrained)
    return trainer


def run(arguments: ExampleArguments, config: UnlearningConfig) -> None:
    if arguments.model_name_or_path is None and arguments.dataset_name is not None:
        raise UnlearningError("--dataset_name needs --model_name_or_path: the classifier that was trained on it.")
    if arguments.model_name_or_path is None:
        folder = "outputs/digits" if config.output_dir == UnlearningConfig.output_dir else config.output_dir
        config = config.but(forget_classes=config.forget_classes or ["3"], output_dir=folder)
        prepare = prepare_digits(config)
    else:
        prepare = prepare_data(arguments, config)
    model, processor, forget, test, retrained, seconds, mapping = prepare
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = {}
    if arguments.baselines or arguments.model_name_or_path is None:
        for name, options in BASELINES.items():
            announce(name)
            trainer = unlearn(model, processor, forget, test, config.but(**options), retrained, mapping, False)
            rows[name] = trainer.report.models["unlearned"] | {"seconds": trainer.report.timings_s["total"]}
            model.load_state_dict(start)
    announce("unlearning")
    trainer = unlearn(model, processor, forget, test, config, retrained, mapping, True)
    report = trainer.report
    seconds |= {"unlearned": report.timings_s["total"], "masked": 0.0}
    models = {name: row | {"seconds": seconds.get(name)} for name, row in report.models.items() if row}
    report.models = {"original": models.pop("original"), **rows, **models, "retrained": models.get("retrained")}
    trainer.save_model()
    if trainer.is_world_process_zero():
        gone = ", ".join(c["label"] for c in report.forget_classes)
        print(f"\nforgotten: {gone} ({report.forget_images} images)\n\n{report.table()}\n")
        print(f"model, processor and report: {config.output_dir}")


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
