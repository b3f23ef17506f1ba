"""model id -> classifier -> proxies -> subspaces -> pseudo-labels -> constrained training -> report."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalPrediction, TrainOutput

from ..config import UnlearningConfig
from ..data.labels import data_labels, model_labels
from ..data.request import LEDGER, draw_nonce, resolve_request
from ..errors import UnlearningError, check_choice, transformers_errors
from ..evaluation import LEVELS, Table
from ..evaluation.accepted import check_trainable
from ..hub.models import resolve_model
from ..methods import Confined, Method, as_method, method_name
from ..methods.run import state_tensors
from ..methods.stages import confine
from ..parallel.batches import SharedBatches, TargetDataset
from ..parallel.processes import rank_and_size, tensors_from_first
from ..pipeline.constraint import attach, freeze_unconstrained
from ..report.report import UnlearningReport
from . import refusals
from .inputs import Data, Inputs, Progress, by_name, check_datasets, first_run, named
from .output_dir import check_output_dir, locked
from .results import Origin, accuracy_metrics, compare_trained, finished_report, project
from .run_key import run_key
from .saving import SavingTrainer, copy_weights
from .stage_cache import StageCache, StageError


class UnlearningTrainer(SavingTrainer):
    """Make an image classifier forget classes or images. A ``Trainer`` in every other respect.

    Everything that can be wrong with the input is checked here, before any expensive work.

    Args:
        model: Hub id, local folder, or a loaded model (then ``processing_class`` is needed, unless the model knows its
            repository).
        args: the options of the run; ``args.forget_classes`` names what to forget.
        forget_dataset: the images to forget and nothing else.
        eval_dataset: labelled test images of retained and forgotten classes, for :meth:`evaluate` alone; or several
            such data sets by name, the report being on the first.
        method: a name in :data:`zspag_hf.METHODS`, ``package.module:Class``, or an instance with options of its own.
        retain_dataset: labelled training images of retained classes, for methods that read them; others never touch it.
        public_dataset: unlabelled images of the same kind, none of them trained on, for methods that can use them,
            which label them by the original; no column but the images' is read.
        processing_class: in place of the model's own. label_mapping: data set label name -> model label or id.
        compute_metrics, callbacks, optimizers: as in ``Trainer``.

    Raises:
        UnlearningError: bad input, named with the mend.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        args: UnlearningConfig,
        forget_dataset: Dataset,
        eval_dataset: Data | dict[str, Data] | None = None,
        *,
        method: str | Method = "zspag",
        retain_dataset: Data | None = None,
        public_dataset: Dataset | None = None,
        processing_class: Any = None,
        label_mapping: dict | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        **unsupported: Any,
    ):
        refusals.check_arguments(args, unsupported)
        tests = by_name(eval_dataset)
        check_datasets(forget_dataset, tests)
        asked = as_method(method)
        asked.check(args)
        refusals.check_combination(asked, retain_dataset, public_dataset, callbacks, optimizers)
        refusals.check_device(args.device)
        model, processing_class = resolve_model(model, processing_class, args.hub)
        check_trainable(model)
        self.label_names_by_id = model_labels(model.config)
        self.given = args.given() | asked.given()  # a run's choices are written into its own copies
        self.completed_method, args = asked.completed(args, len(self.label_names_by_id))
        self.method, self.method_name = self.completed_method, method_name(asked)
        self.origin = Origin.of(model, args.hub)
        labels = {"offset": args.label_offset, "mapping": label_mapping}
        called = data_labels(forget_dataset, args.label_column_name, self.label_names_by_id, **labels)
        self.request = resolve_request(args.forget_classes, self.label_names_by_id, model.config, asked.forgets, called)
        gone = named(self.request.forgotten_ids, self.label_names_by_id)
        check_output_dir(args.output_dir, {"base_model": self.origin.base_model, "forget_classes": gone})
        self.own_optimizer, self.users_metrics = optimizers[0] is None, compute_metrics
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
                compute_metrics=self.score,
            )
        refusals.check_processes(self.accelerator, args.n_gpu)
        self.nonce = draw_nonce()
        self.loss_is_scaled_for_ga = False  # compute_loss returns the mean of its batch
        self.inputs = Inputs(args, processing_class, self.label_names_by_id, label_mapping, self.quiet)
        tests = {name: self.inputs.labelled(dataset) for name, dataset in tests.items()}
        self.eval_dataset = tests if isinstance(eval_dataset, dict) else tests.get("")
        images = (forget_dataset, retain_dataset, public_dataset)
        self.run = first_run(model, self.inputs, self.request, self.method, *images, self)
        self.original = {name: tensor.detach().clone() for name, tensor in state_tensors(self.model).items()}
        if not self.own_optimizer:
            refusals.check_optimizer(optimizers[0], self.run.layers)

    # ------------------------------------------------------------------ training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Run the method's stages and its training; see :class:`zspag_hf.methods.zspag.ZSPAG` for the default.

        Args:
            resume_from_checkpoint: True to go on with a run of the same model, images and settings that was cut off:
                finished stages are read from ``output_dir/_stages``, training goes on from the last checkpoint, where
                ``save_strategy`` wrote one. Or the folder of a checkpoint.

        Raises:
            UnlearningError: nothing to resume, or a loss that is not finite.
        """
        resume = True if str(resume_from_checkpoint).lower() == "true" else resume_from_checkpoint or False
        refusals.check_checkpoint(resume)
        if self.own_optimizer:
            self.optimizer = self.lr_scheduler = None
        else:
            refusals.check_unused(self.optimizer)
        if resume:  # a run that was cut off may be gone on with in the same object
            copy_weights(self.original, self.model)
            setattr(self.model.config, LEDGER, list(self.request.history))
        self.method = copy.copy(self.completed_method)
        self.run = replace(self.run, args=self.args, plan=None, timings={})
        freeze_unconstrained(self.model, set(self.run.layers))
        own = None if self.own_optimizer else repr(self.optimizer)
        self.run.stages = StageCache(self.args.output_dir, run_key(self.run, self.completed_method, own), resume)
        try:
            with locked(self.args.output_dir, shared=True):
                return self.run_stages(resume, trial, ignore_keys_for_eval)
        except UnlearningError as error:
            on_disk = isinstance(error, StageError) or isinstance(error.__cause__, OSError)
            if not on_disk:
                self.run.stages.discard()  # it would end in the same way again
            raise

    def run_stages(self, resume: bool | str, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        """What stands in ``method.prepare``, then the steps, then the report."""
        start, run = time.perf_counter(), self.run
        run.plan = plan = self.method.prepare(run)
        if plan.constraint is None and isinstance(self.method, Confined):
            confine(run, plan, self.method)
        if plan.edit is not None:
            with run.timed("training"):
                plan.apply_edit()
        self.model.requires_grad_(True)
        if plan.trainable is not None:
            freeze_unconstrained(self.model, set(plan.trainable))
        output = TrainOutput(0, 0.0, {})
        if plan.pixels is not None and plan.targets is not None:
            last = run.stages.last_checkpoint(self.args.output_dir) if resume is True else resume or None
            output = self.take_steps(last, trial, ignore_keys_for_eval)
        if plan.train_mode:  # each process has batch statistics of its own rows
            copy_weights(tensors_from_first(dict(self.model.named_buffers())) or {}, self.model)
        self.model.eval()
        for name, layer in run.layers.items():
            refusals.check_finite(layer.weight, f"the weight of layer {name!r}", self.state, self.args)
        run.timings["total"] = time.perf_counter() - start
        self.report = finished_report(
            run, self.method, self.method_name, self.given, self.origin, self.request, self.nonce, self.original
        )
        setattr(self.model.config, LEDGER, [*self.request.history, self.report.request])
        if self.is_world_process_zero():
            for text in [self.report.chosen()] * bool(self.report.choice) + self.report.left_out():
                print(text)
        return output

    def take_steps(self, checkpoint: Any, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        """The optimizer steps, with this run's callbacks and hooks."""
        plan = self.run.made
        assert plan.pixels is not None and plan.targets is not None
        self.train_dataset = TargetDataset(
            plan.pixels, plan.targets, plan.proxies, self.args.seed, plan.blocks, plan.retarget
        )
        self.constraint_hooks: list = []
        callbacks = [*plan.callbacks, Progress(self.run, self.train_dataset)]
        for callback in callbacks:
            self.add_callback(callback)
        try:
            with self.run.timed("training"):
                return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            for callback in callbacks:
                self.remove_callback(callback)
            for handle in self.constraint_hooks:
                handle.remove()

    def get_train_dataloader(self) -> DataLoader:
        """Every image once an epoch, whatever the number of processes."""
        args, images = self.args, self.train_dataset
        seed = args.seed if args.data_seed is None else args.data_seed
        batches = SharedBatches(len(images), args.per_device_train_batch_size, *rank_and_size(), seed, images.blocks)
        loading = {"num_workers": args.dataloader_num_workers, "pin_memory": args.dataloader_pin_memory}
        return DataLoader(images, batch_sampler=batches, collate_fn=self.data_collator, **loading)

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        """One backward pass for each part of the method's loss; gradients are averaged over processes in the last."""
        *first, last = self.method.parts(inputs)
        losses = []
        for part in first:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses) + super().training_step(model, last, num_items_in_batch)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> contextlib.AbstractContextManager:
        """bf16 in training steps alone: what is measured, and what the constraint multiplies, stays in float32."""
        if not self.args.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=bool(cache_enabled))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As ``Trainer``'s, with the keepers and the constraint, which has the last word, around every step."""
        optimizer = super().create_optimizer(model)
        if self.run.plan is not None:
            for keeper in [*self.run.plan.keepers, self.run.plan.constraint]:
                self.constraint_hooks += attach(keeper, optimizer) if keeper is not None else []
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the method in training, cross-entropy to the labels in evaluation.

        The model is in eval mode in both, where the plan does not ask for train mode: batch-norm statistics stay as
        they are, dropout is off (the closest published code leaves it on in one network; a rate of .999, which one Hub
        model has, would leave nothing to train on).
        """
        plan = self.run.plan
        if self.model.training and not (plan and plan.train_mode):
            self.model.eval()
        if "labels" in inputs:
            logits = self.run.classifier(inputs["pixels"].float() / 255)  # not through the wrapper, which may autocast
            loss = nn.functional.cross_entropy(logits, inputs["labels"])
            return (loss, {"logits": logits}) if return_outputs else loss
        loss = self.method.compute_loss(self.run, model, inputs)
        if "control" not in (plan.facts if plan else {}):  # an adaptive run rolls back instead
            refusals.check_finite(loss, "the loss", self.state, self.args)
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple:
        """Loss, logits ``(n, C)`` and labels ``(n,)`` of one batch."""
        batch = self._prepare_inputs(inputs)
        if "inputs" in self.args.include_for_metrics:
            inputs[self.model.main_input_name] = batch[
                "pixels"
            ]  # where Trainer looks for what compute_metrics asks for
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, batch, return_outputs=True)
        return (loss, None, None) if prediction_loss_only else (loss, outputs["logits"], batch["labels"])

    # ------------------------------------------------------------------ evaluation

    def score(self, prediction: EvalPrediction) -> dict[str, float]:
        """The accuracies, and what the given ``compute_metrics`` says."""
        own = accuracy_metrics(prediction, self.request.forgotten_ids, self.label_names_by_id)
        return own | (self.users_metrics(prediction) if self.users_metrics is not None else {})

    def evaluate(
        self,
        eval_dataset: Data | dict[str, Data] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        *,
        retain: Data | None = None,
        retrained: Any = None,
        beside: dict[str, Any] | None = None,
        level: str = "quick",
    ) -> dict[str, float]:
        """Metrics of the model as it is now; after training also the whole report (:mod:`zspag_hf.evaluation`).

        Args:
            eval_dataset: labelled test images, or several such data sets by name (the report is on the first); the one
                given to the constructor by default, or its name there.
            retain: labelled training images of retained classes, for the scores that need them.
            retrained: id, folder or model retrained without the forgotten classes, or a list of them: two give the
                floor between retrained models, three a verdict on every score.
            beside: further unlearned models by name, for the same table.
            level: "quick", or "full": see ``LEVELS``.

        Returns:
            ``eval_acc_rt``, ``eval_acc_ut`` (means over classes), their ``_micro`` forms (over images), one
            ``eval_acc_<label>`` a class (forgotten classes alone beyond 100), in [0, 1], the usual loss and speeds, and
            what ``compute_metrics`` says; with the data set's name in front where there are several. Those of the
            report's data set are without test images that are images to forget.

        Raises:
            UnlearningError: no eval data, retain data of forgotten classes, or a model with other classes.
        """
        check_choice("level", level, LEVELS)
        tests = by_name(self.eval_dataset if eval_dataset is None else eval_dataset)
        known = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        tests = {
            name: self.inputs.labelled(known.get(one, one) if isinstance(one, str) else one)
            for name, one in tests.items()
        }
        if not tests:
            raise UnlearningError("there is nothing to evaluate on: pass eval_dataset.")
        others = {"retained data": retain, "retrained models": retrained, "models beside it": beside}
        given = [name for name, value in others.items() if value is not None]
        if self.report is None and given:
            raise UnlearningError(
                f"a comparison with {', '.join(given)} follows a training: call train() first, or evaluate_unlearning"
                " for models that other tools made."
            )
        if (report := None if self.is_in_train else self.report) is not None:
            compared = (next(iter(tests.values())), None if retain is None else self.inputs.labelled(retain))
            comparison = compare_trained(self.run, self.original, self.accelerator, *compared, retrained, beside, level)
            with self.run.timed("evaluation"):
                self.table = comparison.run(report)
                report.projection = project(self.run, self.table) if level == "full" else None
            tests |= {name: one.only(comparison.apart) for name, one in [*tests.items()][:1]}
        metrics: dict[str, float] = {}
        for name, one in tests.items():
            metrics |= super().evaluate(one, ignore_keys, f"{metric_key_prefix}_{name}" if name else metric_key_prefix)
        return metrics

    def predict(self, test_dataset: Data, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As ``Trainer.predict``, on a data set with image and label columns."""
        return super().predict(self.inputs.labelled(test_dataset), ignore_keys, metric_key_prefix)

    @property
    def quiet(self) -> bool:
        """No progress bars: switched off, or not the first process."""
        return self.args.disable_tqdm or not self.is_world_process_zero()
