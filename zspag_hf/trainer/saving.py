"""What ``Trainer`` does with files: without pickles, none half-written, and published from a list of what may be."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME

from ..data.request import described, write_nonce
from ..errors import UnlearningError
from ..hub.adapter import ModuleClassifier
from ..methods.run import Run, state_tensors
from ..report.files import sync
from ..report.report import UnlearningReport
from .output_dir import check_writable, drop_earlier, locked
from .publishing import full_id, push_folder, write_card
from .stage_cache import KEY_NAME, forget_stages


@torch.no_grad()
def copy_weights(tensors: Mapping[str, Tensor], model: torch.nn.Module) -> None:
    """Write tensors over the parameters and buffers of their names."""
    held = state_tensors(model)
    for name, tensor in tensors.items():
        held[name].copy_(tensor)


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """Copy a checkpoint's weights: Trainer restores only those whose saved names are still the model's own
    (transformers issues 43701 and 48805)."""
    fresh = {"module": copy.deepcopy(model.module)} if isinstance(model, ModuleClassifier) else {}
    saved = type(model).from_pretrained(folder, dtype=torch.float32, **fresh)
    model.load_state_dict(saved.state_dict())


def write_model(model: PreTrainedModel, processor: Any, folder: str, state_dict: dict | None, key: dict | None) -> None:
    """Model and image processor, written elsewhere first and moved in file by file: a failure leaves what stood there.

    Args:
        state_dict: in place of the model's own, or None. key: of the run, beside a checkpoint; None for a result.
    """
    os.makedirs(folder, exist_ok=True)
    for left in Path(folder).glob("_part-*"):  # by a process that was killed
        shutil.rmtree(left)
    part = tempfile.mkdtemp(prefix="_part-", dir=folder)
    try:
        model.save_pretrained(part, state_dict=state_dict)
        processor.save_pretrained(part)
        if key is not None:
            Path(part, KEY_NAME).touch(mode=0o600)  # it holds a checksum of the forget images
            Path(part, KEY_NAME).write_text(json.dumps(key), encoding="utf-8")
            # an earlier run's, which would make a half-written checkpoint look whole
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)
        else:
            drop_earlier(folder)
        # The config says what the weights have forgotten, so it must not be there before them.
        for name in sorted(os.listdir(part), key=lambda name: (name == "config.json", name)):
            sync(os.path.join(part, name))
            os.replace(os.path.join(part, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(part, ignore_errors=True)


class SavingTrainer(Trainer):
    """A ``Trainer`` whose result is saved whole or not at all.

    Attributes:
        report: of the last training, None before. nonce: behind the report's commitment. run: the last one.
    """

    report: UnlearningReport | None
    nonce: str
    run: Run

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_weights(self.model, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing is pushed before the end: earlier weights still remember."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            key = self.run.stages.key if self.is_in_train else None
            model = self.accelerator.unwrap_model(self.model)
            write_model(model, self.processing_class, output_dir or self.args.output_dir, state_dict, key)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model, image processor, report and card; without ``training_args.bin``, a pickle. With ``push_to_hub``
        all that may be published goes to the Hub then.

        Raises:
            UnlearningError: nothing was unlearned yet, the folder cannot be written to, or another run is in it.
        """
        if not _internal_call:
            self.unlearned("save_model")
        folder = output_dir or self.args.output_dir
        check_writable(folder)
        report = self.report if self.args.should_save else None
        with contextlib.nullcontext() if self.is_in_train or not self.args.should_save else locked(folder):
            if report is not None and report.request is not None:  # first: a commitment alone proves nothing
                write_nonce(folder, self.nonce, report.request["commitment"])
            super().save_model(folder, _internal_call=True)
            if report is not None:
                report.save(folder)
                write_card(folder, report, self.hub_model_id)
        if not _internal_call and self.args.should_save:
            forget_stages(self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub()

    def unlearned(self, doing: str) -> UnlearningReport:
        """The report, where the model is not the original any more.

        Raises:
            UnlearningError: nothing was unlearned yet.
        """
        if self.report is None:
            raise UnlearningError(f"nothing has been unlearned yet: call train() before {doing}().")
        return self.report

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Check, before any work, that there is a token; the repository is made when there is something to push."""
        if self.is_world_process_zero():
            name = self.args.hub_model_id or os.path.basename(os.path.abspath(self.args.output_dir))
            self.hub_model_id = full_id(name, token or self.args.hub_token)
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, and publish what may be published as one commit (:mod:`zspag_hf.trainer.publishing`).

        Args:
            commit_message, token, revision, private, create_pr: in place of the options ``hub_*``.
            blocking: must stay True: an upload that fails later would fail unheard.
            kwargs: of :meth:`create_model_card`.

        Returns:
            The commit; None on all processes but the first.

        Raises:
            UnlearningError: nothing was unlearned yet, no token, or the Hub failed.
        """
        if not blocking:
            raise UnlearningError("blocking=False would fail unheard: leave it True.")
        args, request = self.args, self.unlearned("push_to_hub").request
        self.callback_handler.on_push_begin(args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        forget_stages(args.output_dir)
        return push_folder(
            args.output_dir,
            self.hub_model_id,
            token=token or args.hub_token,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            create_pr=args.hub_create_pr if create_pr is None else create_pr,
            replace=args.hub_replace,
            commit_message=commit_message or f"Forget {described(request or {})}",
            card=kwargs,
        )

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the card of the result into ``output_dir``.

        Args:
            kwargs: of ``Trainer.create_model_card``, in place of what the report says: language, license, tags (beside
                the card's own), model_name, finetuned_from, dataset, dataset_tags.
        """
        report = self.unlearned("create_model_card")
        if self.is_world_process_zero():
            write_card(self.args.output_dir, report, self.hub_model_id, **kwargs)
