"""GradCAM (arXiv 1610.02391) for convolutional networks and vision transformers."""

import contextlib
import math
from collections import Counter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..pipeline.classifier import PixelClassifier, to_unit

FINE = 4  # positions along a side that a picture should have, where a layer has them
MOST_PREFIX_TOKENS = 5  # a class token and four registers (DINOv2)


def heatmap_layer(classifier: PixelClassifier, pixels: Tensor) -> str | None:
    """The layer whose output GradCAM weighs, found by a forward pass over ``pixels``.

    Of a convolutional network the last map ``(n, D, h, w)`` with 4 x 4 positions or more, else with 2 x 2; of a
    transformer the last normalisation that feeds queries, keys and values, since the last block's own output has no
    gradient on patch tokens where a class token is read; of one without such (Swin) the last over a square grid. None
    where the model has none of them.
    """
    maps, coarse, grids = list[str](), list[str](), list[str]()  # names of layers, in the order of the pass
    norms = dict[tuple, str]()  # where an output lies -> the normalisation that gave it
    readers = Counter[tuple]()  # where an input lies -> how many layers read it
    kept = list[Tensor]()  # alive until the end, so that no address is used twice

    def watch(name: str, module: nn.Module):
        def hook(_module, args, output):
            if not isinstance(output, Tensor):
                return
            prefix = prefix_tokens(output.shape[1]) if isinstance(module, nn.LayerNorm) and output.dim() == 3 else None
            if prefix is not None:
                norms[output.data_ptr(), output.shape] = name
                kept.append(output)
                grids.extend([name] * (prefix == 0))
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


def prefix_tokens(count: int) -> int | None:
    """Class, distillation and register tokens in front of a square grid of at least 2 x 2; None where it fits none."""
    prefix = count - math.isqrt(count) ** 2
    return prefix if prefix <= MOST_PREFIX_TOKENS and count >= 4 else None


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
                slopes, activations = as_map(torch.autograd.grad(own, outputs[-1])[0]), as_map(outputs[-1].detach())
            maps.append((slopes.mean((2, 3), keepdim=True) * activations).sum(1).relu().float().cpu())
            outputs.clear()
    finally:
        handle.remove()
    return torch.cat(maps)


def as_map(output: Tensor) -> Tensor:
    """A layer's output as ``(n, D, h, w)``: of tokens ``(n, prefix + h w, D)`` the grid behind the prefix, laid out."""
    if output.dim() == 4:
        return output
    side = math.isqrt(output.shape[1])
    return output[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))
