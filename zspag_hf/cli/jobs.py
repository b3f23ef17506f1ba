"""Names in, everything loaded and checked out: what the command line and the examples share."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel

from ..config import UnlearningConfig
from ..data.labels import class_names, model_labels, reconcile_labels, rows_of_classes
from ..data.request import resolve_request, select_rows
from ..errors import UnlearningError, check_choice, check_range
from ..evaluation import LEVELS
from ..hub.datasets import load_split
from ..hub.models import load_classifier
from ..methods import METHODS
from ..trainer.checks import check_same_labels, fsdp_is_asked
from ..trainer.publishing import full_id
from ..trainer.stage_cache import forget_stages
from ..trainer.trainer import UnlearningTrainer

FREE, PROJECTED = {"adaptive": False, "constraint": "none"}, {"adaptive": False, "constraint": "hard"}
SECOND_BEST = {"pseudo_label": "prior", "prior": "second_best", "tilt": "none"}
RENORMALISED = SECOND_BEST | {"prior": "renormalised"}
FEW = {
    "random labels": {"method": "random_labels", **FREE},
    "ZS-PAG, paper's form": {"variant": "paper"},
    "ZS-PAG, last layer": {"scope": "head"},
}
ALL = {
    "random labels": {"method": "random_labels", **FREE},
    "random, projected": {"method": "random_labels", **PROJECTED},
    "random subspace": {"method": "random_labels", **PROJECTED, "subspace_merge": "random"},
    "second-best labels": {**SECOND_BEST, **FREE},
    "second-best, proj.": {**SECOND_BEST, **PROJECTED},
    "renormalised": {**RENORMALISED, **FREE},
    "renormalised, proj.": {**RENORMALISED, **PROJECTED},
    "ZS-PAG, free": FREE,
    "ZS-PAG, paper's form": {"variant": "paper"},
    "ZS-PAG, last layer": {"scope": "head"},
}
BASELINES: dict[str, dict[str, dict]] = {
    kind: {name: {"method": "zspag", "with_retain": None} | options for name, options in rows.items()}
    for kind, rows in (("none", {}), ("few", FEW), ("all", ALL))
}


@dataclass
class DataArguments:
    """Which model, which images, and what to compare with."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder of the classifier."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set, of several."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the data set's repository."}
    )
    train_split: str = field(default="train", metadata={"help": "Split that holds the images to forget."})
    test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on; forget images in it are left out."}
    )
    forget_indices: list[int] | None = field(
        default=None, metadata={"help": "Images to forget, by row of the split, from 0; unset: all of the classes."}
    )
    forget_column: str | None = field(
        default=None, metadata={"help": "Column that tells the images to forget, for example a person's name."}
    )
    forget_values: list[str] | None = field(
        default=None, metadata={"help": "Images whose forget_column holds one of these are forgotten."}
    )
    max_forget_samples: int | None = field(default=None, metadata={"help": "Use at most so many forget images."})
    label_mapping_file: str | None = field(
        default=None, metadata={"help": "JSON file: data set label -> model label, where names differ."}
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

    def __post_init__(self):
        check_choice("level", self.level, LEVELS)
        if self.max_forget_samples is not None:
            check_range("max_forget_samples", self.max_forget_samples, least=1, whole=True)


@dataclass
class Job:
    """Everything that a run needs, loaded and checked.

    Attributes:
        forget, test, retain: the images to forget, to test on, and other training images for the evaluation, or None.
        retrained: folders, ids or models. seconds: training times that are known, by row of the table.
        mapping: data set label -> model label, where names differ.
    """

    model: PreTrainedModel
    processor: object
    forget: Dataset
    test: Dataset
    retain: Dataset | None = None
    retrained: list = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    mapping: dict | None = None


def load_job(arguments: DataArguments, config: UnlearningConfig) -> Job:
    """Load what the arguments name, before anything is computed.

    Raises:
        UnlearningError: bad input, named with the mend.
    """
    if arguments.model_name_or_path is None:
        raise UnlearningError("no model was given: pass model_name_or_path, a Hub id or a folder.")
    if config.dataset_name is None:
        raise UnlearningError("no data was given: pass dataset_name, with the images to forget and to evaluate on.")
    retain_is_read = arguments.retain_in_evaluation or config.with_retain
    if retain_is_read and arguments.train_split == arguments.test_split:
        raise UnlearningError(
            f"retain_in_evaluation or with_retain with {arguments.train_split!r} as both splits would evaluate on the"
            " retained training images: give another test_split."
        )
    model, processor = load_classifier(arguments.model_name_or_path, hub=config.hub)
    mapping = read_mapping(arguments.label_mapping_file)
    train, test = (data_split(split, arguments, config) for split in (arguments.train_split, arguments.test_split))
    names = model_labels(model.config)
    request = resolve_request(config.forget_classes, names, model.config, config.method)
    listed = class_names(train, config.label_column_name)
    ids = reconcile_labels(listed, names, offset=config.label_offset, mapping=mapping)
    columns = {"mapping": ids, "label_column": config.label_column_name}
    rows = select_rows(
        train,
        class_ids=request.class_ids,
        indices=arguments.forget_indices,
        column=arguments.forget_column,
        values=arguments.forget_values,
        **columns,
    )
    if arguments.train_split == arguments.test_split:
        test = without(test, rows)
    retain = None
    if retain_is_read:
        gone = rows_of_classes(train, config.label_column_name, ids, request.forgotten_ids)
        retain = without(train, {*gone, *rows})
    for name in arguments.retrained_models:
        check_same_labels(load_classifier(name, hub=config.other_hub)[0].config, names)  # not after the training
    forget = train.select(rows[: arguments.max_forget_samples])
    return Job(model, processor, forget, test, retain, arguments.retrained_models, {}, mapping)


def data_split(split: str, arguments: DataArguments, config: UnlearningConfig) -> Dataset:
    return load_split(
        config.dataset_name,
        split,
        config_name=arguments.dataset_config,
        revision=arguments.dataset_revision,
        token=config.hub_token,
        cache_dir=config.cache_dir,
    )


def read_mapping(path: str | None) -> dict | None:
    """A JSON file: data set label -> model label.

    Raises:
        UnlearningError: it cannot be read, or holds no such object.
    """
    if path is None:
        return None
    try:
        mapping = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnlearningError(f"the label mapping {path!r} cannot be read: {error}. Give a JSON file.") from error
    if not isinstance(mapping, dict):
        raise UnlearningError(
            f"the label mapping {path!r} holds a {type(mapping).__name__}: give an object,"
            ' {"data label": "model label"}.'
        )
    return mapping


def without(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    return dataset.select(sorted(set(range(len(dataset))) - set(rows)))


def unlearn(job: Job, config: UnlearningConfig) -> UnlearningTrainer:
    """One training on a job's model, in place."""
    trainer = UnlearningTrainer(
        job.model,
        config,
        job.forget,
        job.test,
        retain_dataset=job.retain if config.with_retain else None,
        processing_class=job.processor,
        label_mapping=job.mapping,
    )
    trainer.train(config.resume_from_checkpoint)
    return trainer


def run(job: Job, config: UnlearningConfig, settings: dict[str, dict], level: str, save: bool = True):
    """Unlearn, beside it under other settings from the same start, and evaluate all in one table.

    Args:
        settings: row name -> options that differ from ``config``; see BASELINES.
        save: write the model, before the evaluation and again with its results; else the report alone.

    Returns:
        The trainer of the main run.

    Raises:
        UnlearningError: bad input, named with the mend; settings that forget classes beside a request for images.
    """
    check_settings(job, config, settings)
    if config.push_to_hub and int(os.environ.get("RANK", "0")) == 0:  # now, and not after the other settings
        full_id(config.hub_model_id or os.path.basename(os.path.abspath(config.output_dir)), config.hub_token)
    beside = {}
    # a checkpoint is the main run's; stages are kept for every setting
    resume = config.resume_from_checkpoint if str(config.resume_from_checkpoint).lower() == "true" else None
    for name, options in settings.items():
        announce(name)
        beside[name] = copy.deepcopy(job.model)
        other = config.but(**options, push_to_hub=False, resume_from_checkpoint=resume)
        job.seconds[name] = unlearn(replace(job, model=beside[name]), other).report.timings_s["total"]
    announce("unlearning")
    trainer = unlearn(job, config)
    if save:
        trainer.save_model(_internal_call=True)  # before the evaluation, which may still fail; pushed after it
    job.seconds |= {"unlearned": trainer.report.timings_s["total"], "masked": 0.0}
    trainer.evaluate(retain=job.retain, retrained=job.retrained, beside=beside, level=level)
    for name, row in trainer.report.models.items():
        if row is not None:
            row["seconds"] = job.seconds.get(name)
    if save:
        trainer.save_model()
    elif trainer.is_world_process_zero():
        trainer.report.save(config.output_dir)
        forget_stages(config.output_dir)
    return trainer


def check_settings(job: Job, config: UnlearningConfig, settings: dict[str, dict]) -> None:
    """Refuse settings that would end a comparison after others have run.

    Raises:
        UnlearningError: settings that cannot forget what is to be forgotten, that need retained data where there are
            none, or that FSDP2 cannot train.
    """
    methods = {name: options.get("method", config.method) for name, options in settings.items()}
    for name, method in ({"unlearning": config.method} | methods).items():
        if fsdp_is_asked() and method != "zspag":
            raise UnlearningError(
                f"{name!r} is of method={method!r}, which does not go with FSDP2: launch with"
                " 'accelerate_configs/multi_gpu.yaml', or keep to method='zspag'."
            )
    kind = "classes" if config.forget_classes else "images"
    for name, options in settings.items():
        if kind not in METHODS[methods[name]].forgets:
            raise UnlearningError(
                f"{name!r} cannot stand in one table with method={config.method!r}, which is to forget {kind}: that is"
                f" nothing that it can do. Leave it out, or give baselines='none'."
            )
        try:
            other = config.but(**options)
        except UnlearningError as error:
            raise UnlearningError(f"the setting {name!r}: {error}") from error
        if other.with_retain and job.retain is None:
            raise UnlearningError(
                f"{name!r} trains on retained data, and there are none: give retain_in_evaluation=True, or leave it"
                " out."
            )


def announce(name: str) -> None:
    """Say, once for all processes, what runs next."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n--- {name}")
