"""Work shared among processes by whole batches, so that no result depends on how many processes there are.

One process computes a batch whole, on the same rows whatever their number, so even its rounding stays the same. Each
fills its own rows into zeros, and the sum over processes puts them together: exact, and a process without a batch takes
part like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")
Item = TypeVar("Item")


def rank_and_size() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def my_batches(count: int, batch_size: int) -> list[slice]:
    """This process's share of the batches of ``count`` rows: every W-th of them."""
    rank, size = rank_and_size()
    starts = range(0, count, batch_size)[rank::size]
    return [slice(start, min(start + batch_size, count)) for start in starts]


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, on the tensor's own device; every process has to call it."""
    if rank_and_size()[1] == 1:
        return tensor
    return reduce(tensor.contiguous().to(PartialState().device), "sum").to(tensor.device)


def from_first(value: T) -> T:
    """What the first process passed, to all."""
    if rank_and_size()[1] == 1:
        return value
    payload = [value]
    broadcast_object_list(payload)
    return payload[0]


def tensors_from_first(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The tensors of the first process, to all; None where it passed None."""
    rank, size = rank_and_size()
    if size == 1:
        return tensors
    shapes = from_first(None if tensors is None else {name: (t.shape, t.dtype) for name, t in tensors.items()})
    if shapes is None:
        return None
    device, sent = PartialState().device, {}
    for name, (shape, dtype) in shapes.items():
        mine = tensors[name] if rank == 0 and tensors else torch.empty(shape, dtype=dtype)
        sent[name] = broadcast(mine.to(device)).cpu()
    return sent


def each_shared(work: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """``[work(item) for item in items]``, each item by one process, the results known to all."""
    items, (rank, size) = list(items), rank_and_size()
    mine = [(i, work(items[i])) for i in range(len(items))[rank::size]]
    if size == 1:
        return [result for _, result in mine]
    return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]
