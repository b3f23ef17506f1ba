"""FSDP2: while it trains, each process holds some rows of every weight; at any other time the model is whole.

``fully_shard`` changes a model in place: the class, the hooks and the parameters of its modules. The modules keep both
forms here and change between them, so that layers, constraints and whoever else holds a module need not know.

This saves memory for gradients and optimizer state alone. It saves none for weights: the whole ones stay on every
device, and its shards and the block that a pass gathers come on top of them.

The blocks are chosen here. accelerate (1.15) takes a sharded model as it is, but itself shards hardly any image
classifier: it asks for input embeddings, which most have none of, and in a ViT shards them twice.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import SaveStrategy

from ..errors import UnlearningError
from ..pipeline.layers import Layer

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
else:  # torch may be built without: then nothing is an instance of these
    FSDPModule = DTensor = ()

Form = list[tuple[type, dict]]
SHARDINGS: dict[nn.Module, Sharding] = {}  # those of the trainings that run now
SHARDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # torch shards a module once in its life


@contextlib.contextmanager
def sharded(model: nn.Module, reshard: bool = True):
    """Inside the block the model is sharded; after it the model is whole, with the weights that it then had.

    After an error it has those with which it was whole last: other processes may be gone.

    Args:
        reshard: whether a block's weights are given up between its forward and its backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharding = SHARDINGS[model] = Sharding(model)
    try:
        mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
        SHARDED.add(model)
        for block in blocks(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh)
        yield
        sharding.gather()
    finally:
        sharding.take(sharding.whole)
        del SHARDINGS[model]


class Sharding:
    """The two forms of a model's modules; they begin to have two with this.

    Attributes:
        whole: the form without shards. parameters: (module, name, parameter) of that form.
    """

    def __init__(self, model: nn.Module):
        self.modules = list(model.modules())
        self.parameters = [(m, name, p) for m in self.modules for name, p in m.named_parameters(recurse=False)]
        self.whole = self.form()
        # fully_shard changes the copies alone, so a hook's handle from before still removes it afterwards
        copies = [{k: copy.copy(v) if isinstance(v, dict) else v for k, v in part.items()} for _, part in self.whole]
        self.take([(kind, part) for (kind, _), part in zip(self.whole, copies, strict=True)])

    def form(self) -> Form:
        """What the modules are now."""
        return [(type(module), vars(module)) for module in self.modules]

    def take(self, form: Form) -> None:
        """Make the modules this."""
        for module, (kind, attributes) in zip(self.modules, form, strict=True):
            attributes["training"] = module.training
            module.__class__, module.__dict__ = kind, attributes

    def pairs(self) -> list[tuple[nn.Parameter, DTensor]]:
        """Every parameter and its shard, all of them before any is copied.

        Raises:
            RuntimeError: something else was put in its place, and would be lost.
        """
        found = [(module, name, whole, getattr(module, name)) for module, name, whole in self.parameters]
        for module, name, _, shard in found:
            if not isinstance(shard, DTensor):
                raise RuntimeError(
                    f"{name!r} of {type(module).__name__} was replaced by a {type(shard).__name__} while FSDP2 trained:"
                    " change its values in place."
                )
        return [(whole, shard) for _, _, whole, shard in found]

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the shards' weights to the whole ones; every process has to call it."""
        for module in self.modules:
            if isinstance(module, FSDPModule):
                module.reshard()  # a pass without a gradient leaves the outermost module's weights whole
        for whole, shard in self.pairs():
            whole.copy_(shard.full_tensor())

    @torch.no_grad()
    def scatter(self) -> None:
        """Copy the whole weights to the shards."""
        for whole, shard in self.pairs():
            rows, first = own_rows(shard)
            rows.copy_(whole[first : first + len(rows)])


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered at a time, inner ones first: the items of module lists, which are a network's layers or stages.

    The rest of the model is gathered for a whole step.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    items = {item: None for items in lists for item in items if not isinstance(item, (nn.ModuleList, nn.ModuleDict))}
    return [item for item in reversed(items) if any(True for _ in item.parameters())]


@contextlib.contextmanager
def unsharded(model: nn.Module | None):
    """Inside the block a model that is being trained in shards is whole in every process: these may run any number of
    passes, and what they write to weights, the same in all, is kept. Every process has to enter it; does nothing where
    no model is sharded."""
    if not isinstance(model, FSDPModule):
        yield
        return
    sharding = SHARDINGS[model]
    sharding.gather()
    shards = sharding.form()
    sharding.take(sharding.whole)
    try:
        yield
    finally:
        sharding.take(shards)
        sharding.scatter()


@torch.no_grad()
def own_rows(weight: Tensor) -> tuple[Tensor, int]:
    """The rows of a weight that this process holds, a view, and the number of the first: all of them where the weight
    is whole. Rows are shared out as by ``torch.chunk``: the last processes may have fewer, or none."""
    if not isinstance(weight, DTensor):
        return weight, 0
    most = -(-len(weight) // weight.device_mesh.size())
    return weight.to_local(), min(weight.device_mesh.get_local_rank() * most, len(weight))


def pieces(layer: Layer, rows: Tensor, first: int) -> list[tuple[Tensor, slice]]:
    """Some rows of a weight as matrices ``(g, n, d_in)``, views, each with the groups that it belongs to.

    A shard may begin and end within a group of a convolution: then these rows are pieces of their own.
    """
    if len(rows) == len(layer.weight):
        return [(layer.matrix(rows), slice(None))]
    each, last = len(layer.weight) // layer.groups, first + len(rows)
    cuts = sorted({first, min(-(-first // each) * each, last), max(last // each * each, first), last})
    found = []
    for start, end in pairwise(cuts):
        groups = slice(start // each, max(start // each + 1, end // each))
        part = rows[start - first : end - first]
        found.append((part.view(groups.stop - groups.start, -1, layer.d_in), groups))
    return found


def group_rows(layer: Layer, group: int) -> tuple[Tensor, slice]:
    """This process's rows ``(n, d_in)`` of one group of a layer's weight, a view, and which of the group's they are."""
    rows, first = own_rows(layer.weight)
    if len(rows) == len(layer.weight):
        return layer.matrix(rows)[group], slice(None)
    each, last = len(layer.weight) // layer.groups, first + len(rows)
    start = max(first, group * each)
    end = max(start, min(last, (group + 1) * each))
    mine = rows[start - first : end - first].view(end - start, layer.d_in)
    return mine, slice(start - group * each, end - group * each)


def check_sharding(
    accelerator, args, model: nn.Module, optimizer: torch.optim.Optimizer | None, callbacks: list
) -> None:
    """Refuse what does not go with FSDP2.

    Args:
        optimizer: the one that was given, or None.

    Raises:
        UnlearningError: a method, an option, a callback or a layer that needs more of a weight than some rows in
            float32; a model that torch cannot shard.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy

    from ..fastclip import FastClip  # which imports this module

    plugin, saving = accelerator.state.fsdp_plugin, SaveStrategy(args.save_strategy)
    refused = {
        f"method={args.method!r}": args.method != "zspag",
        f"save_strategy={saving.value!r}": saving != SaveStrategy.NO,
        "bf16=True": args.bf16,
        f"a given {type(optimizer).__name__}": optimizer is not None,
        "'fsdp_auto_wrap_policy'": plugin.auto_wrap_policy is not None,
        "'fsdp_offload_params: true'": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "'fsdp_cpu_ram_efficient_loading: true'": plugin.cpu_ram_efficient_loading,
        "'fsdp_activation_checkpointing: true'": plugin.activation_checkpointing,
        "'fsdp_ignored_modules'": plugin.ignored_modules is not None,
        "'parallelism_config'": accelerator.parallelism_config is not None,
        "the callback FastClip, which must see whole weights,": any(isinstance(one, FastClip) for one in callbacks),
        "a Conv1D layer, whose rows are inputs,": any(isinstance(module, Conv1D) for module in model.modules()),
    }
    for name, given in refused.items():
        if given:
            raise UnlearningError(
                f"{name} does not go with FSDP2: launch with 'accelerate_configs/multi_gpu.yaml', or, where it is an"
                " option, change it as in 'accelerate_configs/fsdp2.yaml'."
            )
    check_unsharded(model)
    check_parameters(model)


def check_unsharded(model: nn.Module) -> None:
    """Refuse a model that torch cannot shard, because it has done so once.

    Raises:
        UnlearningError: it was trained under FSDP2 before.
    """
    if model in SHARDED:
        raise UnlearningError(
            f"this {type(model).__name__} was sharded by FSDP2 before, which torch does once to a model: give a new"
            " trainer a copy.deepcopy of it, or load it anew."
        )


def check_parameters(model: nn.Module) -> None:
    """Refuse weights that torch does not shard, or shards apart although they are one.

    Raises:
        UnlearningError: a parameter without dimensions, or not in row-major order, or of two blocks.
    """
    items, owners = set(blocks(model)), {"": model}
    for path, module in model.named_modules(remove_duplicate=False):  # parents first
        if path:
            owners[path] = module if module in items else owners[path.rpartition(".")[0]]
    first: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dim() == 0:
            raise UnlearningError(
                f"the parameter {name!r} has no dimensions, and FSDP2 shards rows: give it the shape (1,), or launch"
                " with 'accelerate_configs/multi_gpu.yaml'."
            )
        if not parameter.is_contiguous():
            raise UnlearningError(
                f"the weight {name!r} is not contiguous, as FSDP2 needs it (channels last?): give the model after"
                " 'model.to(memory_format=torch.contiguous_format)'."
            )
        owner = owners[name.rpartition(".")[0]]
        other, block = first.setdefault(parameter, (name, owner))
        if owner is not block:
            raise UnlearningError(
                f"{other!r} and {name!r} are one weight, which FSDP2 would shard as two, since it gathers their layers"
                " apart: launch with 'accelerate_configs/multi_gpu.yaml', or give each a weight of its own."
            )
