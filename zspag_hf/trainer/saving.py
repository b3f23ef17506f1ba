"""Saving, restoring and publishing: what ``Trainer`` does with files, without pickles and without half-written ones."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from ..data.request import described, write_nonce
from ..errors import UnlearningError
from ..hub.adapter import ModuleClassifier
from ..report.files import sync
from ..report.report import UnlearningReport
from .checks import check_writable
from .publishing import full_id, push_folder, write_card
from .stage_cache import KEY_NAME, StageCache, forget_stages


class PublishingTrainer(Trainer):
    """A ``Trainer`` whose result is saved whole or not at all, and published from a list of what may be.

    Attributes:
        report: of the last training, None before. nonce: behind the report's commitment.
    """

    report: UnlearningReport | None
    nonce: str
    cache: StageCache | None

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.load_weights(resume_from_checkpoint)

    def _load_best_model(self):
        self.load_weights(self.state.best_model_checkpoint)

    def load_weights(self, folder: str) -> None:
        """Copy a checkpoint's weights: Trainer restores only those whose saved names are still the model's own."""
        plain = isinstance(self.model, ModuleClassifier)
        fresh = {"module": copy.deepcopy(self.model.module)} if plain else {}
        saved = type(self.model).from_pretrained(folder, dtype=torch.float32, **fresh)
        self.model.load_state_dict(saved.state_dict())

    def _push_from_checkpoint(self, checkpoint_folder):
        """Nothing is pushed before the end: earlier weights still remember."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write model, image processor, report and card; without ``training_args.bin``, a pickle. With ``push_to_hub``
        all that may be published goes to the Hub then.

        Raises:
            UnlearningError: nothing was unlearned yet, or FSDP2 is training.
        """
        if self.is_fsdp_enabled:
            raise UnlearningError(
                "FSDP2 saves nothing while it trains: leave save_strategy='no', let no callback ask for a checkpoint,"
                " and save after train()."
            )
        if not _internal_call:
            self.check_unlearned("save_model")
        folder = output_dir or self.args.output_dir
        check_writable(folder)
        if self.args.should_save and self.report is not None:  # first: a commitment without its nonce proves nothing
            os.makedirs(folder, exist_ok=True)
            write_nonce(folder, self.nonce, self.report.request["commitment"])
        super().save_model(folder, _internal_call=True)
        if self.args.should_save and self.report is not None:
            self.report.save(folder)
            write_card(folder, self.report, self.hub_model_id)
        if not _internal_call and self.args.should_save:
            forget_stages(self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub()

    def check_unlearned(self, doing: str) -> None:
        """Refuse to give away the original as a result.

        Raises:
            UnlearningError: nothing was unlearned yet.
        """
        if self.report is None:
            raise UnlearningError(f"nothing has been unlearned yet: call train() before {doing}().")

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
    ):
        """Save, and publish what may be published as one commit (:mod:`zspag_hf.trainer.publishing`).

        Args:
            commit_message, token, revision, private, create_pr: in place of the options ``hub_*``.
            blocking: must stay True: an upload that fails later would fail unheard.

        Returns:
            The commit; None on all processes but the first.

        Raises:
            UnlearningError: nothing was unlearned yet, no token, or the Hub failed.
        """
        if not blocking:
            raise UnlearningError("blocking=False would fail unheard: leave it True.")
        self.check_unlearned("push_to_hub")
        args = self.args
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
            commit_message=commit_message or f"Forget {described(self.report.request)}",
        )

    def create_model_card(self) -> None:
        """Write the card of the result into ``output_dir``."""
        self.check_unlearned("create_model_card")
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self.report, self.hub_model_id)

    def _save(self, output_dir: str | None = None, state_dict=None):
        """Every file is written elsewhere first and moved in whole: a failure leaves what stood there before."""
        if not self.args.should_save:
            return
        target = output_dir or self.args.output_dir
        os.makedirs(target, exist_ok=True)
        for left in Path(target).glob("_part-*"):  # by a process that was killed
            shutil.rmtree(left)
        part = tempfile.mkdtemp(prefix="_part-", dir=target)
        try:
            self.accelerator.unwrap_model(self.model).save_pretrained(part, state_dict=state_dict)
            self.processing_class.save_pretrained(part)
            if self.is_in_train:
                Path(part, KEY_NAME).touch(mode=0o600)  # it holds a checksum of the forget images
                Path(part, KEY_NAME).write_text(json.dumps(self.cache.key), encoding="utf-8")
            if self.is_in_train:  # an earlier run's, which would make a half-written checkpoint look whole
                Path(target, TRAINER_STATE_NAME).unlink(missing_ok=True)
            # The config says what the weights have forgotten, so it must not be there before them.
            for name in sorted(os.listdir(part), key=lambda name: (name == "config.json", name)):
                sync(os.path.join(part, name))
                os.replace(os.path.join(part, name), os.path.join(target, name))
        finally:
            shutil.rmtree(part, ignore_errors=True)
