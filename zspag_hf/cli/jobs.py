"""Names in, everything loaded and checked out: what the command line and the examples share."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ..config import LOOP, RECIPE, UnlearningConfig, check_fields, default_of, option, told
from ..data.labels import class_names, data_labels, model_labels, reconcile_labels, rows_of_classes, with_named_labels
from ..data.request import resolve_request, select_rows
from ..data.sources import numbered
from ..errors import UnlearningError
from ..evaluation import LEVELS
from ..evaluation.accepted import check_same_labels
from ..hub.datasets import load_split
from ..hub.models import load_classifier
from ..methods import Method
from ..methods.random_labels import RandomLabels
from ..methods.zspag import ZSPAG
from ..methods.zspag_paper import ZSPAGPaper
from ..trainer.publishing import full_id
from ..trainer.stage_cache import forget_stages
from ..trainer.trainer import UnlearningTrainer

FEW = {
    "random labels": RandomLabels(),
    "ZS-PAG, paper's form": ZSPAGPaper(),
    "ZS-PAG, last layer": ZSPAG(scope="head"),
}
ALL = {
    "random labels": RandomLabels(),
    "random, projected": RandomLabels(constraint="hard"),
    "random subspace": RandomLabels(constraint="hard", subspace_merge="random"),
    "second-best labels": RandomLabels(targets="second_best"),
    "second-best, proj.": RandomLabels(targets="second_best", constraint="hard"),
    "renormalised": RandomLabels(targets="renormalised"),
    "renormalised, proj.": RandomLabels(targets="renormalised", constraint="hard"),
    "ZS-PAG, free": RandomLabels(targets="renormalised", tilt="influence"),
    "ZS-PAG, paper's form": ZSPAGPaper(),
    "ZS-PAG, last layer": ZSPAG(scope="head"),
}
BASELINES: dict[str, dict[str, Method]] = {"none": {}, "few": FEW, "all": ALL}


@dataclass(frozen=True)
class Setting:
    """One row of a comparison: a method, and the options of the run in which it differs."""

    method: Method
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, main: UnlearningConfig, method: Method) -> UnlearningConfig:
        """The options of the row, from those of the main run, whose recipe is for its own method alone."""
        changes = dict(self.changes)
        if type(self.method) is not type(method):
            usual = {one.name: one.default for one in fields(UnlearningConfig)}
            loop = ("lr_scheduler_type",) if self.method.loops else LOOP
            names = (*RECIPE, *loop, *(() if self.method.trains else ("max_steps",)))
            changes = {name: usual[name] for name in names} | changes
        return replace(main, **changes)


DATA, REQUEST = {"group": "model and data"}, {"group": "request"}


@dataclass
class DataArguments:
    """Which model, which images, and what to compare with."""

    model_name_or_path: str | None = option(
        None, "Hub id or folder of the classifier.", **DATA, metavar="MODEL", private=True
    )
    dataset_config: str | None = option(None, "Configuration of the data set, of several.", **DATA, metavar="NAME")
    dataset_revision: str | None = option(
        None, "Branch, tag or commit of the data set's repository.", **DATA, metavar="REVISION"
    )
    train_split: str = option("train", "Split that holds the images to forget.", **DATA)
    test_split: str = option("test", "Split to evaluate on; forget images in it are left out.", **DATA)
    forget_indices: list[int] | None = option(
        None, "Images to forget, by row of the split, from 0; unset: all of the classes.", **REQUEST, private=True
    )
    forget_column: str | None = option(
        None, "Column that tells the images to forget, for example a person's name.", **REQUEST, private=True
    )
    forget_values: list[str] | None = option(
        None, "Images whose forget_column holds one of these are forgotten.", **REQUEST, private=True
    )
    max_forget_samples: int | None = option(None, "Use at most so many forget images.", **REQUEST, least=1, whole=True)
    public_dataset_name: str | None = option(
        None,
        "Hub id or folder of unlabelled images of the same kind, for a method that can use them.",
        **DATA,
        metavar="DATA",
        private=True,
    )
    public_split: str = option("train", "Split of public_dataset_name that is read.", **DATA)
    label_mapping_file: str | None = option(
        None, "JSON file: data set label -> model label, where names differ.", **DATA, metavar="FILE", private=True
    )
    retrained_models: list[str] = field(
        default_factory=list,
        metadata={
            "help": told(
                "Hub ids or folders of models trained without the classes, to compare with; best three.",
                group="evaluation",
                metavar="MODEL",
                private=True,
            )
        },
    )
    level: str = option("quick", "Of the evaluation", group="evaluation", choices=LEVELS)
    retain_in_evaluation: bool = option(
        False,
        "Evaluate with the training split's other classes too; zero-shot training never sees them.",
        group="evaluation",
    )

    def __post_init__(self):
        check_fields(self)


def given_arguments(arguments: Any) -> dict[str, Any]:
    """Of a dataclass of options those that are not at their defaults, but for private ones."""
    held = {one: getattr(arguments, one.name) for one in fields(arguments)}
    known = {one: v for one, v in held.items() if not getattr(one.metadata.get("help"), "private", True)}
    return {one.name: value for one, value in known.items() if value != default_of(one)}


@dataclass
class Job:
    """Everything that a run needs, loaded and checked.

    Attributes:
        forget, test, retain: the images to forget, to test on, and other training images for the evaluation, or None.
        public: unlabelled images for methods that can use them, or None.
        retrained: folders, ids or models. seconds: training times that are known, by row of the table.
        mapping: data set label -> model label, where names differ. given: options of the command that were given.
    """

    model: PreTrainedModel
    processor: Any
    forget: Dataset
    test: Dataset
    retain: Dataset | None = None
    retrained: list = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    mapping: dict | None = None
    given: dict[str, Any] = field(default_factory=dict)
    public: Dataset | None = None


def load_job(arguments: DataArguments, config: UnlearningConfig, method: Method) -> Job:
    """Load what the arguments name, before anything is computed.

    Raises:
        UnlearningError: bad input, named with the mend.
    """
    if arguments.model_name_or_path is None:
        raise UnlearningError("no model was given: pass model_name_or_path, a Hub id or a folder.")
    if (name := config.dataset_name) is None:
        raise UnlearningError("no data was given: pass dataset_name, with the images to forget and to evaluate on.")
    retain_is_read = arguments.retain_in_evaluation or method.reads_retained
    if retain_is_read and arguments.train_split == arguments.test_split:
        raise UnlearningError(
            f"retained data with {arguments.train_split!r} as both splits would evaluate on the"
            " retained training images: give another test_split."
        )
    check_public(arguments, name, method)
    model, processor = load_classifier(arguments.model_name_or_path, hub=config.hub)
    mapping = read_mapping(arguments.label_mapping_file)
    train, test = load_splits(name, arguments, config)
    public = None
    if (unlabelled := arguments.public_dataset_name) is not None:
        column = config.image_column_name
        public = load_split(unlabelled, arguments.public_split, hub=config.other_hub, image_column=column)
    names = model_labels(model.config)
    labels: dict[str, Any] = {"offset": config.label_offset, "mapping": mapping}
    called = data_labels(train, config.label_column_name, names, **labels)
    request = resolve_request(config.forget_classes, names, model.config, method.forgets, called)
    ids = reconcile_labels(class_names(train, config.label_column_name), names, **labels)
    rows = select_rows(
        train,
        class_ids=request.class_ids,
        mapping=ids,
        label_column=config.label_column_name,
        indices=arguments.forget_indices,
        column=arguments.forget_column,
        values=arguments.forget_values,
    )
    if arguments.train_split == arguments.test_split:
        test = without(test, rows)
    retain = None
    if retain_is_read:
        gone = rows_of_classes(train, config.label_column_name, ids, request.forgotten_ids)
        retain = without(train, {*gone, *rows})
    for other in arguments.retrained_models:
        check_same_labels(load_classifier(other, hub=config.other_hub)[0].config, names)  # not after the training
    forget = train.select(rows[: arguments.max_forget_samples])
    given = given_arguments(arguments)
    return Job(model, processor, forget, test, retain, arguments.retrained_models, {}, mapping, given, public)


def check_public(arguments: DataArguments, dataset_name: str, method: Method) -> None:
    """Refuse public images that nothing would be made of, or that are not what they are called.

    Raises:
        UnlearningError: a method that cannot use them, or the training or test images themselves.
    """
    name, split = arguments.public_dataset_name, arguments.public_split
    if name is None and split != "train":
        raise UnlearningError(f"public_split={split!r} belongs to a data set: give public_dataset_name too.")
    if name is None:
        return
    if not method.reads_public:
        raise UnlearningError(
            f"{type(method).__name__} cannot use unlabelled images: leave public_dataset_name={name!r} out, or give"
            " method='zspag'."
        )
    same = os.path.realpath(name) == os.path.realpath(dataset_name)
    if same and split in (arguments.train_split, arguments.test_split):
        raise UnlearningError(
            f"public_split={split!r} of the same data holds the training or test images themselves: give another"
            " public_split or public_dataset_name, or with_retain=True for retained images."
        )


def load_splits(name: str, arguments: DataArguments, config: UnlearningConfig) -> list[Dataset]:
    """The training and the test split; images stored as bytes and labels stored as texts become images and labels."""
    hub = replace(config.other_hub, revision=arguments.dataset_revision)
    given: dict[str, Any] = {"config_name": arguments.dataset_config, "image_column": config.image_column_name}
    splits = [load_split(name, split, hub=hub, **given) for split in (arguments.train_split, arguments.test_split)]
    return with_named_labels(list(map(numbered, splits)), config.label_column_name)


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


def without(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    """The data set without some of its rows."""
    return dataset.select(sorted(set(range(len(dataset))) - set(rows)))


def unlearn(job: Job, config: UnlearningConfig, method: Method) -> UnlearningTrainer:
    """One training on a job's model, in place."""
    trainer = UnlearningTrainer(
        job.model,
        config,
        job.forget,
        job.test,
        method=method,
        retain_dataset=job.retain if method.reads_retained else None,
        public_dataset=job.public if method.reads_public else None,
        processing_class=job.processor,
        label_mapping=job.mapping,
    )
    trainer.given |= job.given
    trainer.train(config.resume_from_checkpoint)
    return trainer


def run(
    job: Job,
    config: UnlearningConfig,
    method: Method,
    settings: Mapping[str, Setting],
    level: str,
    save: bool = True,
) -> UnlearningTrainer:
    """Unlearn, beside it under other settings from the same start, and evaluate all in one table.

    Args:
        settings: row name -> :class:`Setting`.
        save: write the model, before the evaluation and again with its results; else the report alone.

    Returns:
        The trainer of the main run.

    Raises:
        UnlearningError: bad input, named with the mend; settings that forget classes beside a request for images.
    """
    configs = check_settings(job, config, method, settings)
    if config.push_to_hub and int(os.environ.get("RANK", "0")) == 0:  # now, and not after the other settings
        full_id(config.hub_model_id or os.path.basename(os.path.abspath(config.output_dir)), config.hub_token)
    beside = {}
    for name, setting in settings.items():
        announce(name)
        beside[name] = copy.deepcopy(job.model)
        row = unlearn(replace(job, model=beside[name]), configs[name], setting.method)
        job.seconds[name] = row.run.timings["total"]
    announce("unlearning")
    trainer = unlearn(job, config, method)
    report = trainer.unlearned("evaluate")
    if save:
        trainer.save_model(_internal_call=True)  # before the evaluation, which may still fail; pushed after it
    job.seconds |= {"unlearned": report.timings_s["total"], "masked": 0.0}
    trainer.evaluate(retain=job.retain, retrained=job.retrained, beside=beside, level=level)
    for name, scores in report.models.items():
        if scores is not None:
            scores["seconds"] = job.seconds.get(name)
    if save:
        trainer.save_model()
    elif trainer.is_world_process_zero():
        report.save(config.output_dir)
        forget_stages(config.output_dir)
    return trainer


def check_settings(
    job: Job, config: UnlearningConfig, method: Method, settings: Mapping[str, Setting]
) -> dict[str, UnlearningConfig]:
    """The options of every row, refused where they would end a comparison after others have run.

    Raises:
        UnlearningError: settings that cannot forget what is to be forgotten, or that need retained data where there are
            none.
    """
    kind, configs = "classes" if config.forget_classes else "images", {}
    # a checkpoint is the main run's; stages are kept for every setting
    resumed = str(config.resume_from_checkpoint).lower() == "true"
    own: dict[str, Any] = {"push_to_hub": False, "resume_from_checkpoint": "true" if resumed else None}
    own |= {"save_strategy": "no", "load_best_model_at_end": False}
    method.check(config)
    for name, setting in settings.items():
        if kind not in setting.method.forgets:
            raise UnlearningError(
                f"{name!r} cannot stand in one table with {type(method).__name__}, which is to forget {kind}: that is"
                f" nothing that it can do. Leave it out, or give baselines='none'."
            )
        try:
            other = setting.config(config, method)
            setting.method.check(other)
        except UnlearningError as error:
            raise UnlearningError(f"the setting {name!r}: {error}") from error
        if setting.method.reads_retained and job.retain is None:
            raise UnlearningError(
                f"{name!r} trains on retained data, and there are none: give retain_in_evaluation=True, or leave it"
                " out."
            )
        configs[name] = replace(other, **own)
    return configs


def announce(name: str) -> None:
    """Say, once for all processes, what runs next."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n--- {name}")
