"""How far a model has forgotten: one call for models of any origin, beside original, masked and retrained ones."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from ..data.images import labelled_dataset, read_forget_set
from ..data.labels import check_dataset, class_names, data_labels, model_labels, reconcile_labels
from ..data.request import resolve_request
from ..errors import check_choice
from ..hub.models import resolve_model, source_of
from ..hub.repository import HubOptions
from ..parallel.memory import peak_memory_mb
from ..report.report import UnlearningReport, versions
from .comparison import LEVELS, Comparison
from .others import Model, load_other, load_others
from .table import PixelDataset, Table

__all__ = ["LEVELS", "Comparison", "PixelDataset", "Table", "evaluate_unlearning"]


def evaluate_unlearning(
    original: Model,
    unlearned: Model,
    forget_dataset: Dataset,
    test_dataset: Dataset,
    forget_classes: list[str | int],
    *,
    retain: Dataset | None = None,
    retrained: Model | list[Model] | None = None,
    beside: dict[str, Model] | None = None,
    level: str = "quick",
    processing_class: BaseImageProcessor | None = None,
    label_offset: int | None = None,
    label_mapping: dict | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    seed: int = 0,
    hub: HubOptions | None = None,
    disable_progress: bool = False,
) -> UnlearningReport:
    """Evaluate an unlearned model that any tool made.

    Args:
        original, unlearned: Hub id, folder or loaded model, before and after; the same classes in the same order.
        forget_dataset: the images that were to be forgotten, of the forgotten classes alone.
        test_dataset: labelled test images of retained and, where there are any, of forgotten classes.
        retain: labelled training images of retained classes; several scores need them.
        retrained: one or several models trained without the forgotten classes. Two give the floor between retrained
            models, three a verdict on every score.
        beside: further unlearned models by name, for the same table.
        level: "quick", or "full": relearning with retained images and over three draws, GradCAM, more retained images.
        processing_class: an image processor, for models given as objects or in place of the original's own.
        label_offset, label_mapping: as in :func:`zspag_hf.data.labels.reconcile_labels`, where label names differ.
        image_column_name, label_column_name: columns of all data sets.
        seed: draws the images that subsets hold, and the batches of relearning.
        hub: how models are read from the Hub; a revision in it is the original's.

    Returns:
        The report; ``.table()`` prints it, ``.save(folder)`` writes JSON, a page and pictures.

    Raises:
        UnlearningError: bad input, named with the mend, before anything is computed.
    """
    start, accelerator, hub = time.perf_counter(), Accelerator(), hub or HubOptions()
    check_dataset(forget_dataset, "forget_dataset")
    check_dataset(test_dataset, "test_dataset")
    check_choice("level", level, LEVELS)
    first, processor = resolve_model(original, processing_class, hub)
    names, others = model_labels(first.config), replace(hub, revision=None)
    columns: dict[str, Any] = {"image_column": image_column_name, "label_column": label_column_name}
    labels: dict[str, Any] = {"offset": label_offset, "mapping": label_mapping}
    called = data_labels(forget_dataset, label_column_name, names, **labels)
    request = resolve_request(forget_classes, names, first.config, data_labels=called)
    mapping = reconcile_labels(class_names(forget_dataset, label_column_name), names, **labels)
    forget = read_forget_set(forget_dataset, processor, request.class_ids, mapping, len(names), **columns)
    test = labelled_dataset(test_dataset, processor, names, **columns, **labels)
    kept = None if retain is None else labelled_dataset(retain, processor, names, **columns, **labels)
    load = partial(load_other, names=names, processor=processor, device=accelerator.device, hub=others)
    comparison = Comparison(
        load(first),
        load(unlearned),
        request.forgotten_ids,
        names,
        PixelDataset(forget.pixels, forget.labels),
        test,
        accelerator,
        retain=kept,
        **load_others(retrained, beside, load),
        level=level,
        seed=seed,
        quiet=disable_progress or not accelerator.is_main_process,
    )
    base_model, base_revision = source_of(first)
    report = UnlearningReport(
        method="given",
        base_model=base_model,
        base_revision=base_revision,
        history=request.history,
        forget_classes=[{"id": i, "label": names[i]} for i in request.forgotten_ids],
        forget_images=len(forget),
        seed=seed,
        versions=versions(),
    )
    comparison.run(report)
    report.timings_s["evaluation"] = report.timings_s["total"] = time.perf_counter() - start
    report.peak_memory_mb = peak_memory_mb()
    return report
