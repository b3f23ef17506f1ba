"""GradCAM (arXiv 1610.02391) for convolutional networks and vision transformers."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ..pipeline.classifier import PixelClassifier, to_unit

FINE = 4  # positions along a side that a picture should have, where a layer has them
PREFIX_TOKENS = 2  # at most, beside registers: for the class, and for distillation (DeiT)


def heatmap_layer(classifier: PixelClassifier, pixels: Tensor) -> str | None:
    """The layer whose output GradCAM weighs, found by a forward pass over ``pixels``.

    Of a convolutional network the last map ``(n, D, h, w)`` with 4 x 4 positions or more, else with 2 x 2; of a
    transformer the last normalisation that feeds queries, keys and values, since the last block's own output has no
    gradient on patch tokens where a class token is read; of one without such (Swin) the last over a grid alone. None
    where the model has none of them, or tokens whose grid is not told by configuration and image
    (:func:`token_grid`).
    """
    maps, coarse, grids = list[str](), list[str](), list[str]()  # names of layers, in the order of the pass
    norms = dict[tuple, str]()  # where an output lies -> the normalisation that gave it
    readers = Counter[tuple]()  # where an input lies -> how many layers read it
    kept = list[Tensor]()  # alive until the end, so that no address is used twice

    def watch(name: str, module: nn.Module):
        def hook(_module, args, output):
            if not isinstance(output, Tensor):
                return
            tokens = isinstance(module, nn.LayerNorm) and output.dim() == 3
            grid = token_grid(classifier.model.config, pixels.shape, output.shape[1]) if tokens else None
            if grid is not None:
                norms[output.data_ptr(), output.shape] = name
                kept.append(output)
                grids.extend([name] * (grid[0] * grid[1] == output.shape[1]))
            if isinstance(module, (nn.Linear, Conv1D)) and args[0].dim() == 3:
                readers[args[0].data_ptr(), args[0].shape] += 1
            if output.dim() == 4 and min(output.shape[2:]) > 1:
                (maps if min(output.shape[2:]) >= FINE else coarse).append(name)

        return module.register_forward_hook(hook)

    with contextlib.ExitStack() as stack:
        for name, module in classifier.model.named_modules():
            if name:
                stack.callback(watch(name, module).remove)
        classifier.predict(pixels)
    attended = [name for place, name in norms.items() if readers[place] >= 3]
    return next((names[-1] for names in (attended, grids, maps, coarse) if names), None)


def token_grid(config: PretrainedConfig, images: Sequence[int], count: int) -> tuple[int, int] | None:
    """Rows and columns, 2 at least, of the patches of ``images`` ``(n, channels, H, W)`` among ``count`` tokens; class,
    distillation and register tokens stand in front of them.

    By the configuration's patches, also when a deeper stage has merged them two by two. A configuration without one
    size of patches: by squares that tile the image, as many as there are tokens, or one fewer. None where neither fits.
    """
    config = getattr(config, "vision_config", config)
    side = next((s for n in ("patch_stride", "patch_size") if (s := pair(getattr(config, n, None)))), None)
    registers = getattr(config, "num_register_tokens", None) or 0
    if side is None:
        sides = [(s, s) for s in range(1, min(images[-2:])) if images[-2] % s == images[-1] % s == 0]
    else:
        sides = [(side[0] << stage, side[1] << stage) for stage in range(6)]
    for stage, (high, wide) in enumerate(sides):
        rows, columns = images[-2] // high, images[-1] // wide
        most = 1 if side is None else 0 if stage else PREFIX_TOKENS + registers
        if min(rows, columns) > 1 and 0 <= count - rows * columns <= most:
            return rows, columns
    return None


def pair(size: Any) -> tuple[int, int] | None:
    """Of one number, or two; None of anything else, such as a size for each stage."""
    numbers = [size] * 2 if isinstance(size, int) else list(size) if isinstance(size, (list, tuple)) else []
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(isinstance(n, int) for n in numbers) else None


def heatmaps(classifier: PixelClassifier, layer: str, pixels: Tensor, labels: Tensor, batch_size: int = 16) -> Tensor:
    """GradCAM maps ``(n, h, w)`` on the CPU for each image's own label: ReLU(sum_d w_d A_d), w_d the mean over
    positions of d logit / d A_d. Not scaled, so that maps of different models can be drawn on one scale."""
    outputs: list[Tensor] = []

    def hook(_module, _args, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # what follows may write into it

    maps, handle = [], classifier.model.get_submodule(layer).register_forward_hook(hook)
    try:
        for x, y in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
            with torch.enable_grad():
                logits = classifier(to_unit(x, classifier.device).detach().requires_grad_())
                own = logits.gather(1, y.to(logits.device)[:, None]).sum()
                slopes = torch.autograd.grad(own, outputs[-1])[0]
            both = (slopes, outputs[-1].detach())
            slopes, activations = (as_map(part, classifier.model.config, x.shape) for part in both)
            maps.append((slopes.mean((2, 3), keepdim=True) * activations).sum(1).relu().float().cpu())
            outputs.clear()
    finally:
        handle.remove()
    return torch.cat(maps)


def as_map(output: Tensor, config: PretrainedConfig, images: Sequence[int]) -> Tensor:
    """A layer's output as ``(n, D, h, w)``: of tokens ``(n, prefix + h w, D)`` the grid behind the prefix, laid out."""
    if output.dim() == 4:
        return output
    grid = token_grid(config, images, output.shape[1])
    assert grid is not None, "heatmap_layer names no other layer"
    return output[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
