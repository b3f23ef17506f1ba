"""Stages that are timed and kept on disk, and batches that do not depend on the number of processes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from ..parallel.batches import SharedBatches
from ..parallel.memory import trim_memory
from ..parallel.processes import rank_and_size
from ..parallel.sharding import sharded
from ..report.report import UnlearningReport
from .saving import PublishingTrainer

CHOSEN = ("learning_rate", "energy_threshold")  # options that an adaptive run fills in


class StagedTrainer(PublishingTrainer):
    """A ``Trainer`` whose run can be cut off anywhere, and gone on with by any number of processes.

    Attributes:
        timings: stage -> seconds, also of an earlier process. asked: options as given that a run fills in.
        projected: proxies' features, for the picture of a full evaluation, or None. sharded: whether FSDP2 trains.
    """

    timings: dict[str, float]
    asked: dict
    projected: dict[str, Tensor] | None
    sharded: bool

    @contextlib.contextmanager
    def shards(self):
        """Under FSDP2: the block in which the model is sharded, and Trainer told so."""
        if not self.sharded:
            yield
            return
        with sharded(self.model, self.accelerator.state.fsdp_plugin.reshard_after_forward):
            self.is_fsdp_enabled = True
            try:
                yield
            finally:
                self.is_fsdp_enabled = False

    @contextlib.contextmanager
    def stage(self, name: str):
        """Time one stage into the report."""
        start = time.perf_counter()
        try:
            yield
        finally:
            trim_memory()
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def finished(self, name: str, stage: str, make) -> tuple[dict, dict]:
        """A stage's tensors and facts, read from the cache or made by ``make()`` and kept there.

        Args:
            name: in the cache. stage: under which its time stands in the report, also the time of an earlier process.
        """
        with self.stage(stage):
            tensors, facts, earlier = self.cache.stage(name, make)
        self.timings[stage] += earlier
        return tensors, facts

    def trained(self, output: TrainOutput) -> tuple[dict, dict]:
        """What a finished training leaves: for the stage of that name."""
        tensors = {f"model/{name}": tensor for name, tensor in self.state_tensors().items()}
        if self.projected is not None:
            tensors |= {f"projected/{name}": tensor for name, tensor in self.projected.items()}
        facts = {"report": asdict(self.report), "output": output._asdict(), "nonce": self.nonce}
        facts["state"] = asdict(self.state) | {"stateful_callbacks": {}}
        return tensors, facts | {"chosen": {name: getattr(self.args, name) for name in CHOSEN}}

    def rewind(self) -> None:
        """Weights and open choices as they came: a run that was cut off may be gone on with in the same object."""
        with torch.no_grad():
            for name, tensor in self.state_tensors().items():
                tensor.copy_(self.original[name])
        for name, value in self.asked.items():
            setattr(self.args, name, value)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name, each once, also where modules share it."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def restore(self, tensors: dict, facts: dict) -> TrainOutput:
        """The other way round: the state after a training that an earlier process finished."""
        parts = {"model": {}, "projected": {}}
        for name, tensor in tensors.items():
            kind, key = name.split("/", 1)
            parts[kind][key] = tensor
        with torch.no_grad():
            for name, tensor in self.state_tensors().items():
                tensor.copy_(parts["model"][name])
        self.model.eval()
        self.projected = parts["projected"] or None
        self.report, self.nonce = UnlearningReport(**facts["report"]), facts["nonce"]
        self.timings = self.report.timings_s
        self.state = TrainerState(**facts["state"])
        for name, value in facts["chosen"].items():
            setattr(self.args, name, value)
        self.show()
        return TrainOutput(**facts["output"])

    def get_train_dataloader(self) -> DataLoader:
        """Every image once an epoch, whatever the number of processes."""
        rank, size = rank_and_size()
        args, count = self.args, len(self.train_dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        return DataLoader(
            self.train_dataset,
            batch_sampler=SharedBatches(
                count, args.per_device_train_batch_size, rank, size, seed, self.train_dataset.blocks
            ),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )


class EpochCallback(TrainerCallback):
    """Tells the epoch to the training set, which pairs forget images with proxies by it, and to the sampler."""

    def __init__(self, trainer: StagedTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_):
        epoch = int(state.epoch or 0)
        self.trainer.train_dataset.set_epoch(epoch)
        train_dataloader.batch_sampler.set_epoch(epoch)
