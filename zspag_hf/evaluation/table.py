"""Models and images -> one table of logits and features, gathered once; the metrics see nothing else."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..adaptive.head import head_inputs
from ..errors import UnlearningError
from ..metrics.rows import TEST_FORGOTTEN, TEST_RETAINED
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import as_layer

IMAGES_AT_ONCE = 128
TEST = "test"  # a part whose rows are told from each other by their label


@dataclass(frozen=True)
class Table:
    """A row an image."""

    references: np.ndarray  # (N,) label ids
    splits: np.ndarray  # (N,) names out of zspag_hf.metrics.rows.SPLITS
    logits: dict[str, np.ndarray]  # model name -> (N, C) float32
    features: dict[str, np.ndarray]  # model name -> (N, D) float32, the input of its head, where it has one
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (N,) of the pixels

    def rows(self, *splits: str) -> np.ndarray:
        """Indices of the rows of some splits, ``(n,)``."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def only(self, rows: np.ndarray) -> "Table":
        """The table of some rows, indices ``(n,)``."""
        logits, features = ({name: held[rows] for name, held in each.items()} for each in (self.logits, self.features))
        return Table(self.references[rows], self.splits[rows], logits, features, self.digests[rows])


class PixelDataset(Dataset):
    """Pixels ``(N, channels, H, W)`` uint8 and labels ``(N,)`` as items."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "labels": self.labels[index]}


def gather_table(
    models: Mapping[str, PixelClassifier],
    parts: Mapping[str, Dataset],
    forget_ids: Sequence[int],
    accelerator: Accelerator,
    heads: Mapping[str, str | None],
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
        loader = accelerator.prepare_data_loader(DataLoader(dataset, batch_size=IMAGES_AT_ONCE))
        for batch in tqdm(loader, desc=f"Report, {split}", disable=disable_progress):
            held = {"labels": batch["labels"], "digests": digests(batch["pixels"])}
            for name, model in models.items():
                head = heads[name]
                ear = head_inputs(as_layer(head, model.model.get_submodule(head))) if head else contextlib.nullcontext()
                with ear as features:
                    held[f"logits/{name}"] = model.predict(batch["pixels"])
                if features is not None:
                    held[f"features/{name}"] = torch.cat(features)
            held = {key: value.to(accelerator.device).contiguous() for key, value in held.items()}
            for key, value in accelerator.gather_for_metrics(held).items():
                columns.setdefault(key, []).append(value.cpu().numpy())
            labels = columns["labels"][-1].tolist()
            tests = (TEST_FORGOTTEN if label in forget_ids else TEST_RETAINED for label in labels)
            splits += tests if split == TEST else [split] * len(labels)
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
        joined["digests"],
    )


def digests(pixels: Tensor) -> Tensor:
    """A number for each image, ``(n,)`` int64, the same for the same pixels ``(n, channels, H, W)``."""
    marks = [hashlib.sha256(image.numpy().tobytes()).digest()[:8] for image in pixels.cpu().contiguous()]
    return torch.tensor([int.from_bytes(mark, "little", signed=True) for mark in marks])
