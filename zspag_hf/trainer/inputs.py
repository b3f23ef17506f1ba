"""The data sets of a run, read and checked, and the run that begins with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..config import UnlearningConfig
from ..data.images import (
    EvalDataset,
    ForgetSet,
    RetainSet,
    labelled_dataset,
    read_forget_set,
    read_public_images,
    read_retain_set,
)
from ..data.labels import check_dataset, class_names, reconcile_labels, wrong_labels
from ..data.request import Request
from ..errors import UnlearningError
from ..evaluation.accepted import check_outputs
from ..methods import Method, Run
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import constrained_layers, head_name
from .output_dir import check_same_images

Data: TypeAlias = Dataset | EvalDataset


def by_name(datasets: Any) -> dict[str, Any]:
    """One or several data sets by name; a single one has the name "", and None is none."""
    if datasets is None or isinstance(datasets, Mapping):
        return dict(datasets or {})
    return {"": datasets}


def check_datasets(forget_dataset: Any, tests: Mapping[str, Any]) -> None:
    """Refuse anything but data sets that are read as they were stored.

    Raises:
        UnlearningError: from :func:`zspag_hf.data.labels.check_dataset`.
    """
    check_dataset(forget_dataset, "forget_dataset")
    for name, dataset in tests.items():
        check_dataset(dataset, f"eval_dataset {name}".rstrip())


def named(ids: list[int], label_names: list[str]) -> list[dict[str, Any]]:
    """Classes as the report and the ledger write them."""
    return [{"id": i, "label": label_names[i]} for i in ids]


@dataclass(frozen=True)
class Inputs:
    """How data sets are read: columns and labels by ``args``, pixels by the image processor.

    Attributes:
        label_names: of the model, by id. mapping: data set label -> model label or id, or None.
    """

    args: UnlearningConfig
    processor: Any
    label_names: list[str]
    mapping: dict | None
    quiet: bool

    def labelled(self, dataset: Data, what: str = "the data to evaluate on") -> EvalDataset:
        """A data set with image and label columns as the model's inputs."""
        if isinstance(dataset, EvalDataset):
            return dataset
        args = self.args
        return labelled_dataset(
            dataset,
            self.processor,
            self.label_names,
            image_column=args.image_column_name,
            label_column=args.label_column_name,
            offset=args.label_offset,
            mapping=self.mapping,
            what=what,
        )

    def forget(self, dataset: Dataset, request: Request) -> ForgetSet:
        """The images to forget, checked against the classes to forget.

        Raises:
            UnlearningError: bad data, or a column of wrong labels where no class is forgotten.
        """
        args, column, trained = self.args, self.args.trained_label_column, None
        labels: dict[str, Any] = {"offset": args.label_offset, "mapping": self.mapping}
        listed = class_names(dataset, args.label_column_name)
        if column is not None and not request.class_ids:
            raise UnlearningError(
                f"trained_label_column={column!r} would change nothing where images are forgotten and their classes"
                " stay: leave it out, or give forget_classes."
            )
        if column is not None:
            trained = wrong_labels(dataset, column, self.label_names, request.forgotten_ids, **labels)
        return read_forget_set(
            dataset,
            self.processor,
            request.class_ids,
            reconcile_labels(listed, self.label_names, **labels),
            len(self.label_names),
            image_column=args.image_column_name,
            label_column=args.label_column_name,
            trained_labels=trained,
            views=args.forget_views,
            seed=args.seed,
            disable_progress=self.quiet,
        )

    def retained(self, dataset: Data, forget_ids: list[int], forget: ForgetSet, most: int | None) -> RetainSet:
        """Retained images, at most ``most`` of them, drawn at random."""
        return read_retain_set(
            self.labelled(dataset, "retain_dataset"),
            forget_ids,
            forget.images,
            most=most,
            seed=self.args.seed,
            disable_progress=self.quiet,
        )

    def public(self, dataset: Dataset, forget: ForgetSet) -> Tensor:
        """Unlabelled images, uint8 ``(N, channels, H, W)``."""
        column = self.args.image_column_name
        return read_public_images(
            dataset, self.processor, forget.images, image_column=column, disable_progress=self.quiet
        )


def log_of(trainer: Trainer) -> Callable[[dict[str, float]], None]:
    """``trainer.log`` for callbacks: after it a step's own log, which falls due in the same step, is still written."""

    def log(logs: dict[str, float]) -> None:
        due = trainer.control.should_log
        trainer.log(logs)
        trainer.control.should_log = due

    return log


def first_run(
    model: PreTrainedModel,
    inputs: Inputs,
    request: Request,
    method: Method,
    forget_dataset: Dataset,
    retain_dataset: Data | None,
    public_dataset: Dataset | None,
    trainer: Trainer,
) -> Run:
    """The images read, the layers found, and the method asked whether it can work on them: a training goes on from
    there. Retained data are touched for a method that reads them alone; public images are refused before for others."""
    args, classifier = inputs.args, PixelClassifier(model, inputs.processor)
    forget = inputs.forget(forget_dataset, request)
    check_same_images(args.output_dir, forget.images, named(request.class_ids, inputs.label_names))
    retained = None
    if method.reads_retained and retain_dataset is not None:
        most = method.to_dict().get("max_retain_samples")
        retained = inputs.retained(retain_dataset, request.forgotten_ids, forget, most)
    pair = forget.pixels[[0, -1]]  # two rows, which tell an image's rows from a table's
    check_outputs(classifier, pair, "model", "the forget images")
    model.eval()
    layers = constrained_layers(model, lambda: classifier(pair.to(args.device).float() / 255))
    run = Run(
        model,
        classifier,
        layers,
        head_name(layers, classifier.num_labels),
        forget,
        retained,
        request.class_ids,
        request.forgotten_ids,
        inputs.label_names,
        args,
        inputs.quiet,
        log_of(trainer),
        public=None if public_dataset is None else inputs.public(public_dataset, forget),
    )
    method.check_model(run)
    return run


class Progress(TrainerCallback):
    """Tells the method's run what transformers knows of the training, and the epoch to the training set, which pairs
    forget images with proxies by it, and to the sampler."""

    def __init__(self, run: Run, images: Any):
        self.run, self.images = run, images

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The state of this training."""
        self.run.state = state

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """The epoch."""
        epoch = int(state.epoch or 0)
        self.images.set_epoch(epoch)
        train_dataloader.batch_sampler.set_epoch(epoch)
