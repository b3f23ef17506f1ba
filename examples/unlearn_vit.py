"""Forget a class from an image classifier, and see what it cost.

    accelerate launch examples/unlearn_vit.py

needs no network: it trains a small ViT on scikit-learn's digits, and a reference without one class, forgets that class
with ZS-PAG, and prints the models side by side. With a model and a data set of your own it is what zspag-hf unlearn is:

    accelerate launch examples/unlearn_vit.py --model_name_or_path user/model --dataset_name user/data \\
        --forget_classes cat --output_dir outputs/without-cat

``--config run.yaml`` takes options from a file. Every field of UnlearningConfig and of the method is an option.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import UnlearningConfig, UnlearningError
from zspag_hf.cli.exit_status import reported
from zspag_hf.cli.jobs import DataArguments, Job, given_arguments, load_job, run, without
from zspag_hf.cli.parsing import parse_run
from zspag_hf.cli.running import MethodArguments, prepare, show
from zspag_hf.data.labels import resolve_classes, rows_of_classes


def main() -> None:
    """Run the command line."""
    data, beside, config, method = parse_run((DataArguments, MethodArguments), sys.argv[1:], **HELP)
    prepare(config)
    if data.model_name_or_path is None:
        config, beside.baselines = digits_options(data, beside, config)
        job = digits_job(config)
    else:
        job = load_job(data, config, method)
    job.given |= given_arguments(beside)
    trainer = run(job, config, method, beside.rows(), data.level)
    if trainer.is_world_process_zero():
        show(trainer.report, config.output_dir)


def digits_options(data: DataArguments, beside: MethodArguments, config: UnlearningConfig):
    """The options as they are without a model: the 3 is forgotten, beside a few baselines."""
    if config.dataset_name is not None:
        raise UnlearningError("--dataset_name needs --model_name_or_path: the classifier that was trained on it.")
    folder = "outputs/digits" if config.output_dir == UnlearningConfig.output_dir else config.output_dir
    config = replace(config, forget_classes=config.forget_classes or ["3"], output_dir=folder)
    return config, "few" if beside.baselines == "none" else beside.baselines


def digits_job(config: UnlearningConfig) -> Job:
    """A small ViT that reads digits, another that was trained without the class, the images, and training seconds."""
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
    forget, retain = train.select(rows), without(train, rows)
    return Job(models["original"], processor, forget, test, retain, [models["retrained"]], seconds)


HELP = {"usage": "accelerate launch examples/unlearn_vit.py [options]", "description": __doc__}

if __name__ == "__main__":
    reported(main)
