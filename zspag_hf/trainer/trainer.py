"""model id -> classifier -> proxies -> subspaces -> pseudo-labels -> constrained training -> report."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..config import UnlearningConfig
from ..data.images import EvalDataset, labelled_dataset, read_forget_set, read_retain_set
from ..data.labels import check_dataset, class_names, distinct, model_labels, reconcile_labels
from ..data.request import LEDGER, check_same_images, draw_nonce, resolve_request
from ..errors import UnlearningError, check_choice, transformers_errors
from ..evaluation import LEVELS, Table
from ..fastclip import FastClip
from ..hub.models import inherited_card, resolve_model, source_of
from ..methods import METHODS, Plan
from ..methods.stages import confine
from ..metrics import compute
from ..metrics.rows import TEST_FORGOTTEN, TEST_RETAINED
from ..parallel.batches import TargetDataset
from ..parallel.heartbeat import heartbeat
from ..parallel.memory import return_large_blocks
from ..parallel.processes import summed, tensors_from_first
from ..parallel.sharding import check_sharding, unsharded
from ..pipeline.classifier import PixelClassifier
from ..pipeline.constraint import attach, freeze_unconstrained
from ..pipeline.layers import constrained_layers, head_name
from ..report.report import UnlearningReport
from .checks import (
    check_backend,
    check_checkpoint,
    check_device,
    check_launch,
    check_optimizer,
    check_output_dir,
    check_outputs,
    check_parallel,
    check_trainable,
    check_unused,
)
from .finite import check_weights, not_finite
from .results import compare_trained, make_report, project
from .run_key import run_key
from .stage_cache import StageCache, StageError
from .staged import CHOSEN, EpochCallback, StagedTrainer

TRAINED = "training"  # the last stage: all that the others led to
LOGGED_CLASSES = 100  # accuracies by class go to the log up to so many classes; the report has them all


class UnlearningTrainer(StagedTrainer):
    """Make an image classifier forget classes, without the retained data. A ``Trainer`` in every other respect.

    Everything that can be wrong with the input is checked here, before any expensive work.

    Args:
        model: Hub id, local folder, or a loaded model (then ``processing_class`` is needed, unless the model knows its
            repository).
        args: the options; ``args.forget_classes`` names what to forget.
        forget_dataset: a ``datasets.Dataset`` that holds the images to forget and nothing else.
        eval_dataset: labelled test images of retained and forgotten classes, for :meth:`evaluate` alone.
        retain_dataset: labelled training images of retained classes, for methods with ``with_retain``; others never
            touch it.
        processing_class: an image processor, in place of the model's own.
        label_mapping: data set label name -> model label or id, where the names differ.
        callbacks, optimizers: as in ``Trainer``.

    Raises:
        UnlearningError: bad input, named with the mend.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        args: UnlearningConfig,
        forget_dataset,
        eval_dataset=None,
        *,
        retain_dataset=None,
        processing_class=None,
        label_mapping: dict | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
    ):
        if not isinstance(args, UnlearningConfig):
            raise UnlearningError(f"args must be an UnlearningConfig, not {type(args).__name__}.")
        check_dataset(forget_dataset, "forget_dataset")
        if eval_dataset is not None:
            check_dataset(eval_dataset, "eval_dataset")
        self.method = METHODS[args.method]()
        if args.with_retain and retain_dataset is None:
            raise UnlearningError(f"the method {args.method!r} is to read retained data: pass retain_dataset.")
        if args.constraint != "none" and any(isinstance(one, FastClip) for one in callbacks or ()):
            raise UnlearningError(
                f"FastClip changes weights past constraint={args.constraint!r}: give constraint='none', or leave the"
                " callback out."
            )
        if args.adaptive and optimizers != (None, None):
            given = " and ".join(type(one).__name__ for one in optimizers or () if one is not None)
            raise UnlearningError(
                f"an adaptive run makes its own optimizer and cannot take {given}: give adaptive=False with optimizers."
            )
        args = copy.copy(args)  # a run's choices are written into its own options, not into the caller's
        check_device(args.device)
        model, processing_class = resolve_model(model, processing_class, args.hub)
        check_trainable(model)
        self.base_model, self.base_revision = source_of(model)
        origin = model.config._name_or_path
        revision = None if os.path.isdir(origin) else self.base_revision
        self.inherited = inherited_card(origin, replace(args.hub, revision=revision))
        self.label_names_by_id = model_labels(model.config)
        args.complete(len(self.label_names_by_id))
        self.request = resolve_request(args.forget_classes, self.label_names_by_id, model.config, args.method)
        self.forget_ids = self.request.forgotten_ids
        earlier = {"base_model": self.base_model, "forget_classes": self.named(self.forget_ids)}
        check_output_dir(args.output_dir, earlier)
        self.own_optimizer = optimizers[0] is None
        self.label_mapping = label_mapping
        self.retain_dataset = retain_dataset if args.with_retain else None  # never seen by a zero-shot form
        self.timings: dict[str, float] = {}
        self.constraint_hooks: list = []
        self.plan: Plan | None = None
        self.cache: StageCache | None = None
        self.frames: dict = {}
        self.projected: dict | None = None  # proxies' features, for the picture of a full evaluation
        self.report: UnlearningReport | None = None
        self.table: Table | None = None  # behind the last report; stays in this process
        with transformers_errors():
            super().__init__(
                model=model,
                args=args,
                processing_class=processing_class,
                eval_dataset=eval_dataset,
                callbacks=callbacks,
                optimizers=optimizers,
                compute_metrics=self.accuracy_metrics,
            )
        check_parallel(args.n_gpu)
        self.sharded = self.accelerator.is_fsdp2
        if self.sharded:
            check_sharding(self.accelerator, args, self.model, self.optimizer, self.callback_handler.callbacks)
            self.is_fsdp_enabled = False  # but in shards(): until then Trainer has to treat the model as any other
            self.model.to(args.device)
        else:
            check_backend(self.accelerator)
        check_launch(self.accelerator)
        self.nonce = draw_nonce()
        self.loss_is_scaled_for_ga = False  # compute_loss returns the mean of its batch
        self.can_return_loss = False
        self.label_names = ["labels"]
        self.classifier = PixelClassifier(self.model, processing_class)
        self.forget = self.read_forget(forget_dataset)
        if not self.request.class_ids:
            check_same_images(args.output_dir, self.forget.images)
        self.eval_dataset = None if eval_dataset is None else self.labelled(eval_dataset)
        self.retain = None if self.retain_dataset is None else self.read_retain()
        self.find_layers()
        self.asked = {name: getattr(args, name) for name in CHOSEN}
        if not self.own_optimizer:
            check_optimizer(self.optimizer, self.layers)

    # ------------------------------------------------------------------ data

    def read_forget(self, dataset):
        """The forget set as pixels and labels, checked against the classes to forget."""
        args = self.args
        return read_forget_set(
            dataset,
            self.processing_class,
            self.request.class_ids,
            self.reconcile(dataset),
            self.classifier.num_labels,
            image_column=args.image_column_name,
            label_column=args.label_column_name,
            views=args.forget_views,
            seed=args.seed,
            disable_progress=self.quiet,
        )

    def read_retain(self):
        """The retained images as pixels and labels: ``args.max_retain_samples`` of them, drawn at random."""
        args = self.args
        return read_retain_set(
            self.labelled(self.retain_dataset, "retain_dataset"),
            self.forget_ids,
            self.forget.images,
            most=args.max_retain_samples,
            seed=args.seed,
            disable_progress=self.quiet,
        )

    def named(self, ids: list[int]) -> list[dict]:
        """Classes as the report and the ledger write them."""
        return [{"id": i, "label": self.label_names_by_id[i]} for i in ids]

    def reconcile(self, dataset) -> list[int]:
        return reconcile_labels(
            class_names(dataset, self.args.label_column_name),
            self.label_names_by_id,
            offset=self.args.label_offset,
            mapping=self.label_mapping,
        )

    def labelled(self, dataset, what: str = "the data to evaluate on") -> EvalDataset:
        """A data set with image and label columns as the model's inputs."""
        if isinstance(dataset, EvalDataset):
            return dataset
        args = self.args
        return labelled_dataset(
            dataset,
            self.processing_class,
            self.label_names_by_id,
            image_column=args.image_column_name,
            label_column=args.label_column_name,
            offset=args.label_offset,
            mapping=self.label_mapping,
            what=what,
        )

    def find_layers(self) -> None:
        """The constrained layers and the head, and the weights as they were."""
        pair = self.forget.pixels[[0, -1]]  # two rows, which tell an image's rows from a table's
        check_outputs(self.classifier, pair, "model", "the forget images")
        sample = pair.to(self.args.device).float() / 255
        self.model.eval()
        self.layers = constrained_layers(self.model, lambda: self.classifier(sample))
        self.head = head_name(self.layers, self.classifier.num_labels)
        if self.head is None and self.args.adaptive and self.args.scope != "all":
            raise UnlearningError(
                f"no layer of the model has one output for each of its {self.classifier.num_labels} labels, so there is"
                " no head to finish with: give scope='all'."
            )
        self.original = {name: tensor.detach().clone() for name, tensor in self.state_tensors().items()}

    @property
    def original_weights(self) -> dict[str, torch.Tensor]:
        """Layer name -> its weight as it came."""
        return {name: self.original[f"{name}.weight"] for name in self.layers}

    # ------------------------------------------------------------------ training

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        """Run the stages and the constrained training; see :class:`zspag_hf.methods.zspag.ZSPAG` for the default.

        Args:
            resume_from_checkpoint: True to go on with a run of the same model, images and settings that was cut off:
                finished stages are read from ``output_dir/_stages``, training goes on from the last checkpoint, where
                ``save_strategy`` wrote one. Or the folder of a checkpoint.

        Raises:
            UnlearningError: nothing to resume, or a loss that is not finite.
        """
        resume = True if str(resume_from_checkpoint).lower() == "true" else resume_from_checkpoint or False
        check_checkpoint(resume, self.sharded)
        if self.sharded:  # again: callbacks are added, and models change
            check_sharding(self.accelerator, self.args, self.model, None, self.callback_handler.callbacks)
        if not self.own_optimizer:
            check_unused(self.optimizer)
        try:
            with heartbeat():
                return self.run_stages(resume, trial, ignore_keys_for_eval)
        except UnlearningError as error:
            on_disk = isinstance(error, StageError) or isinstance(error.__cause__, OSError)
            if self.cache is not None and not on_disk:
                self.cache.discard()  # it would end in the same way again
            raise

    def run_stages(self, resume: bool | str, trial, ignore_keys_for_eval) -> TrainOutput:
        """What stands in ``method.prepare``, then the steps; finished stages are taken from the cache on ``resume``."""
        start = time.perf_counter()
        return_large_blocks()
        self.timings.clear()
        if resume:
            self.rewind()
        if self.own_optimizer:
            self.optimizer = self.lr_scheduler = None
        freeze_unconstrained(self.model, set(self.layers))
        self.cache = None  # not an earlier run's, which an error would discard
        self.cache = StageCache(self.args.output_dir, run_key(self), resume)
        finished = self.cache.load(TRAINED) if resume is True else None
        if finished is not None:
            return self.restore(*finished)
        self.plan = plan = self.method.prepare(self)
        confine(self, plan)
        if plan.edit is not None:
            self.edit(plan)
        self.model.requires_grad_(True)
        if plan.trainable is not None:
            freeze_unconstrained(self.model, set(plan.trainable))
        output = TrainOutput(0, 0.0, {})
        if plan.pixels is not None:
            checkpoint = resume or None
            if resume is True:  # FSDP2 writes no checkpoints, and reads none of another launch
                checkpoint = None if self.sharded else self.cache.last_checkpoint(self.args.output_dir)
            output = self.run_training(checkpoint, trial, ignore_keys_for_eval)
        if plan.train_mode:  # each process has batch statistics of its own rows
            for name, tensor in (tensors_from_first(dict(self.model.named_buffers())) or {}).items():
                self.model.get_buffer(name).copy_(tensor)
        self.model.eval()
        check_weights(self.layers, self.state.global_step)
        self.timings["total"] = time.perf_counter() - start
        self.report = make_report(self)
        self.cache.store(TRAINED, *self.trained(output))
        self.cache.keep_only(TRAINED)
        self.show()
        return output

    def edit(self, plan: Plan) -> None:
        """Change the weights at once, confined as a step would be."""
        with self.stage("training"):
            around = [*plan.keepers, *([plan.constraint] if plan.constraint else [])]
            for keeper in around:
                keeper.before_step()
            plan.edit()
            for keeper in around:
                keeper.after_step()

    def run_training(self, checkpoint, trial, ignore_keys_for_eval) -> TrainOutput:
        """The optimizer steps, with this run's callbacks and hooks."""
        plan = self.plan
        self.train_dataset = TargetDataset(
            plan.pixels, plan.targets, plan.proxies, self.args.seed, plan.blocks, plan.retarget
        )
        callbacks = [*self.plan.callbacks, EpochCallback(self)]
        for callback in callbacks:
            self.add_callback(callback)
        try:
            with self.stage("training"), self.shards():
                return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            for callback in callbacks:
                self.remove_callback(callback)
            for handle in self.constraint_hooks:
                handle.remove()

    def show(self) -> None:
        """Write the run into the model's ledger, and print what it chose."""
        setattr(self.model.config, LEDGER, [*self.request.history, self.report.request])
        if self.is_world_process_zero():
            for text in [self.report.chosen()] * bool(self.report.choice) + self.report.left_out():
                print(text)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One backward pass for each part of the method's loss; gradients are averaged over processes in the last.

        Under FSDP2 ``no_sync`` does not nest: with gradient accumulation they are averaged there for each micro-batch.
        """
        *first, last = self.method.parts(inputs)
        losses = []
        for part in first:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses) + super().training_step(model, last, num_items_in_batch)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """bf16 in training steps alone: what is measured, and what the constraint multiplies, stays in float32."""
        if not self.args.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=cache_enabled)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.plan is not None:
            for keeper in self.plan.keepers:  # before the constraint, which has the last word
                self.constraint_hooks += attach(keeper, optimizer)
            if self.plan.constraint is not None:
                self.constraint_hooks += attach(self.plan.constraint, optimizer)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of the method in training, cross-entropy to the labels in evaluation.

        The model is in eval mode in both, where the plan does not ask for train mode: batch-norm statistics stay as
        they are, dropout is off (the closest published code leaves it on in one network; a rate of .999, which one Hub
        model has, would leave nothing to train on).
        """
        if self.model.training and not (self.plan and self.plan.train_mode):
            self.model.eval()
        if "labels" in inputs:
            logits = self.classifier(inputs["pixels"].float() / 255)  # not through the wrapper, which may autocast
            loss = nn.functional.cross_entropy(logits, inputs["labels"])
            return (loss, {"logits": logits}) if return_outputs else loss
        loss = self.method.compute_loss(self, model, inputs)
        if not self.args.adaptive:  # an adaptive run rolls back instead
            own = not torch.isfinite(loss)
            if summed(torch.tensor(float(own))):  # all processes end together
                with unsharded(self.model):
                    raise not_finite(self, inputs, own)
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return (loss, None, None) if prediction_loss_only else (loss, outputs["logits"], inputs["labels"])

    # ------------------------------------------------------------------ evaluation

    def accuracy_metrics(self, prediction) -> dict[str, float]:
        """acc_rt, acc_ut, their micro forms, and one accuracy a class, from gathered logits."""
        labels = prediction.label_ids
        splits = np.where(np.isin(labels, self.forget_ids), TEST_FORGOTTEN, TEST_RETAINED)
        scores = compute("unlearning_accuracy", predictions=prediction.predictions, references=labels, splits=splits)
        per_class = scores.pop("per_class")
        shown = per_class if self.classifier.num_labels <= LOGGED_CLASSES else self.forget_ids
        names = distinct(self.label_names_by_id)
        found = {k: v for k, v in scores.items() if k.startswith("acc_") and v is not None}
        for k in (k for k in shown if k in per_class):
            name = f"acc_{names[k]}"  # a class may be called "rt"
            found[f"{name} ({k})" if name in scores else name] = per_class[k]
        return found

    def evaluate(
        self,
        eval_dataset=None,
        ignore_keys=None,
        metric_key_prefix="eval",
        *,
        retain=None,
        retrained=None,
        beside=None,
        level="quick",
    ):
        """Metrics of the model as it is now; after training also the whole report (:mod:`zspag_hf.evaluation`).

        Args:
            eval_dataset: labelled test images; the one given to the constructor by default.
            retain: labelled training images of retained classes, for the scores that need them.
            retrained: id, folder or model retrained without the forgotten classes, or a list of them: two give the
                floor between retrained models, three a verdict on every score.
            beside: further unlearned models by name, for the same table.
            level: "quick", or "full": see ``LEVELS``.

        Returns:
            ``eval_acc_rt``, ``eval_acc_ut`` (means over classes), their ``_micro`` forms (over images), one
            ``eval_acc_<label>`` a class (forgotten classes alone beyond 100), in [0, 1], and the usual loss and speeds.

        Raises:
            UnlearningError: no eval data, retain data of forgotten classes, or a model with other classes.
        """
        check_choice("level", level, LEVELS)
        dataset = self.eval_dataset if eval_dataset is None else self.labelled(eval_dataset)
        if dataset is None:
            raise UnlearningError("there is nothing to evaluate on: pass eval_dataset.")
        comparison = None
        others = {"retain": retain, "retrained": retrained, "beside": beside}
        given = [name for name, value in others.items() if value is not None]
        if self.report is None and given:
            raise UnlearningError(
                f"a comparison with other models or retained data ({', '.join(given)}) follows a training: call train()"
                " first, or evaluate_unlearning for models that other tools made."
            )
        if not self.is_in_train and self.report is not None:
            comparison = compare_trained(self, dataset, retain, retrained, beside, level)
        with heartbeat(), unsharded(self.model):
            metrics = super().evaluate(dataset, ignore_keys, metric_key_prefix)
            if comparison is not None:
                with self.stage("evaluation"):
                    self.table = comparison.run(self.report)
                    self.report.projection = project(self, self.table) if level == "full" else None
        return metrics

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """As ``Trainer.predict``, on a data set with image and label columns."""
        dataset = self.labelled(test_dataset)
        with unsharded(self.model):
            return super().predict(dataset, ignore_keys, metric_key_prefix)

    @property
    def quiet(self) -> bool:
        """No progress bars: switched off, or not the first process."""
        return self.args.disable_tqdm or not self.is_world_process_zero()
