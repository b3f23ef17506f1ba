"""The training batches: forget images beside proxies, each image once an epoch whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptProxies:
    """Proxies beside the forget images in training: pixels ``(P, channels, H, W)`` in [0, 1]; targets ``(P, C)``, the
    original's outputs without the forgotten classes; labels ``(P,)``, its answers; features ``(P, D)``, its
    standardised penultimate features, or None for a model without a head."""

    pixels: Tensor
    targets: Tensor
    labels: Tensor
    features: Tensor | None = None


class TargetDataset(torch.utils.data.Dataset):
    """Forget images with their target distributions, each paired with a proxy to be kept.

    Items: pixels uint8 and targets ``(C,)``; with proxies also proxy_pixels float in [0, 1] and proxy_targets ``(C,)``;
    with their features also feature_targets ``(D,)``, the features of a proxy of a class drawn from the image's target;
    with blocks ``(N,)`` also the image's. ``retarget`` gives an epoch's targets. What is paired is drawn from seed and
    epoch, so it depends on neither the batch nor the process. Batches are read by the rows of :class:`SharedBatches`,
    and have their weights too.
    """

    def __init__(
        self,
        pixels: Tensor,
        targets: Tensor,
        proxies: KeptProxies | None = None,
        seed: int = 0,
        blocks: Tensor | None = None,
        retarget: Callable[[int], Tensor] | None = None,
    ):
        self.pixels, self.targets, self.proxies, self.seed = pixels, targets, proxies, seed
        self.blocks, self.retarget = blocks, retarget
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw targets and pairs of an epoch."""
        if self.retarget is not None:
            self.targets = self.retarget(epoch)
        if self.proxies is None:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.pairs = torch.randperm(len(self.proxies.pixels), generator=generator)
        if self.proxies.features is not None:
            self.goals = proxies_like(self.targets, self.proxies.labels, generator)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, rows: list[tuple[int, float]]) -> list[dict[str, Tensor]]:
        return [self[index] | {"weights": torch.tensor(weight)} for index, weight in rows]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"pixels": self.pixels[index], "targets": self.targets[index]}
        if self.blocks is not None:
            item["blocks"] = self.blocks[index]
        if self.proxies is not None:
            pair = self.pairs[index % len(self.pairs)]
            item |= {"proxy_pixels": self.proxies.pixels[pair], "proxy_targets": self.proxies.targets[pair]}
            if self.proxies.features is not None:
                item["feature_targets"] = self.proxies.features[self.goals[index]]
        return item


def proxies_like(targets: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each target ``(N, C)`` one proxy ``(N,)``, of a class drawn from the target among those that have proxies."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=targets.shape[1])
    weights = (targets.clamp_min(1e-12) * (counts > 0)).cpu()
    classes = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    within = (torch.rand(len(classes), generator=generator) * counts[classes]).long()
    return order[counts.cumsum(0)[classes] - counts[classes] + within]


class SharedBatches(torch.utils.data.Sampler):
    """Global batches of a random order, drawn from seed and epoch, of which each process reads its own rows:
    ``[(index, weight), ...]``.

    accelerate would fill up the last batch with rows from the front, other ones for another number of processes. Here
    each row counts once: it comes with the weight W / (rows of the global batch), W processes, and the mean over
    processes of the weighted sums is the mean over the global batch. A process without a row gets one of weight 0.

    Args:
        count: rows in all. per_process: rows that a process reads at a time.
        rank, size: this process's number, and how many there are.
        blocks: ``(count,)``, or None: rows of one number make batches of their own, and numbers come in order.
    """

    def __init__(self, count: int, per_process: int, rank: int, size: int, seed: int, blocks: Tensor | None = None):
        self.count, self.rank, self.size, self.seed = count, rank, size, seed
        self.together, self.epoch = per_process * size, 0
        self.blocks = torch.zeros(count, dtype=torch.long) if blocks is None else blocks

    def set_epoch(self, epoch: int) -> None:
        """Which order is next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-int(count) // self.together) for count in self.blocks.unique(return_counts=True)[1])

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for block in self.blocks.unique():
            rows = order[self.blocks[order] == block].tolist()
            for start in range(0, len(rows), self.together):
                batch = rows[start : start + self.together]
                mine = [(index, self.size / len(batch)) for index in batch[self.rank :: self.size]]
                yield mine or [(batch[0], 0.0)]
