"""Models and images -> one table of logits and features, gathered once; the metrics see nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..adaptive.head import head_inputs
from ..errors import UnlearningError
from ..metrics.rows import TEST_FORGOTTEN, TEST_RETAINED
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import as_layer

TEST = "test"  # a part whose rows are told apart by their label


@dataclass(frozen=True)
class Table:
    """A row an image.

    Attributes:
        references: ``(N,)`` label ids.
        splits: ``(N,)`` names out of ``zspag_hf.metrics.rows.SPLITS``.
        logits: model name -> ``(N, C)`` float32.
        features: model name -> ``(N, D)`` float32, the input of the classification head; models without one are not in.
    """

    references: np.ndarray
    splits: np.ndarray
    logits: dict[str, np.ndarray]
    features: dict[str, np.ndarray]

    def rows(self, *splits: str) -> np.ndarray:
        """Indices of the rows of some splits."""
        return np.flatnonzero(np.isin(self.splits, splits))


class PixelDataset(Dataset):
    """Pixels ``(N, channels, H, W)`` uint8 and labels ``(N,)`` as items."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "labels": self.labels[index]}


def gather_table(
    models: dict[str, PixelClassifier],
    parts: dict[str, Dataset],
    forget_ids: Sequence[int],
    accelerator,
    heads: dict[str, str | None],
    *,
    batch_size: int = 128,
    disable_progress: bool = True,
) -> Table:
    """Run every model once over every image; several processes share the images, and all get the whole table.

    Args:
        parts: split name -> data set of {"pixels", "labels"} items; TEST is divided by ``forget_ids``.
        heads: model -> name of its classification head, whose input is kept as features; None for logits alone.

    Raises:
        UnlearningError: a model's outputs are not finite.
    """
    columns: dict[str, list[np.ndarray]] = {}
    splits: list[str] = []
    for split, dataset in parts.items():
        if not len(dataset):
            continue
        loader = accelerator.prepare_data_loader(DataLoader(dataset, batch_size=batch_size))
        for batch in tqdm(loader, desc=f"Report, {split}", disable=disable_progress):
            found = {"labels": batch["labels"]}
            for name, model in models.items():
                head = heads[name]
                if head is None:
                    found[f"logits/{name}"] = model.predict(batch["pixels"])
                    continue
                with head_inputs(as_layer(head, model.model.get_submodule(head))) as features:
                    found[f"logits/{name}"] = model.predict(batch["pixels"])
                found[f"features/{name}"] = torch.cat(features)
            found = {key: value.to(accelerator.device).contiguous() for key, value in found.items()}
            gathered = accelerator.gather_for_metrics(found)
            for key, value in gathered.items():
                columns.setdefault(key, []).append(value.cpu().numpy())
            splits += [split_of(split, int(label), forget_ids) for label in gathered["labels"]]
    joined = {key: np.concatenate(values) for key, values in columns.items()}
    for name in models:
        if not np.isfinite(joined[f"logits/{name}"]).all():
            raise UnlearningError(
                f"the {name} model's outputs are not finite on some images, which several scores would take for"
                " forgetting: leave it out, or train it at a lower learning_rate."
            )
    return Table(
        joined["labels"],
        np.array(splits),
        {name: joined[f"logits/{name}"] for name in models},
        {name: joined[f"features/{name}"] for name, head in heads.items() if head is not None},
    )


def split_of(part: str, label: int, forget_ids: Sequence[int]) -> str:
    if part != TEST:
        return part
    return TEST_FORGOTTEN if label in forget_ids else TEST_RETAINED
