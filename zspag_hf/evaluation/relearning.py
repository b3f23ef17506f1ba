"""Depth of forgetting: how fast a fine-tuning on forget images brings the forgotten class back (GKT, arXiv 2201.05629).

A model whose features no longer know the class has to learn it anew, as a retrained one must; where only the last
layer hides it, a few steps bring it back.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..parallel.processes import each_shared, rank_and_size
from ..pipeline.classifier import PixelClassifier, to_unit

LEARNING_RATE = 1e-3  # Adam's, as in GKT's relearn time
STEPS = 20
RELEARN_BATCH = 32  # forget images a step; as many retained ones beside them in the mixed form

Images = tuple[Tensor, Tensor]  # pixels (n, channels, H, W) uint8, and labels (n,)


class RelearnData(NamedTuple):
    """What is fine-tuned on, and what is watched meanwhile."""

    forget: Images
    test_forgotten: Images
    test_retained: Images
    retain: Images | None = None  # beside the forget images; None for those alone


def relearning_curve(classifier: PixelClassifier, data: RelearnData, steps: int, seed: int = 0) -> dict[str, list]:
    """Fine-tune a copy of the model for some steps; the model itself is not touched.

    All weights train, by Adam at 1e-3, in eval mode (no dropout, batch-norm statistics as they are), on 32 forget
    images a step, drawn with replacement, and, where ``data.retain`` is given, 32 retained ones.

    Returns:
        step: 0 .. ``steps``; acc_ut and acc_rt: accuracy in [0, 1] on the watched images after each of them.
    """
    model = copy.deepcopy(classifier).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    watched = {"acc_ut": data.test_forgotten, "acc_rt": data.test_retained}
    curve: dict[str, list] = {"step": list(range(steps + 1)), "acc_ut": [], "acc_rt": []}
    for step in range(steps + 1):
        if step:
            batches = []
            for pixels, labels in [data.forget] if data.retain is None else [data.forget, data.retain]:
                rows = torch.randint(len(pixels), (RELEARN_BATCH,), generator=generator)
                batches.append((pixels[rows], labels[rows]))
            pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
            with torch.enable_grad():
                loss = F.cross_entropy(model(to_unit(pixels, model.device)), labels.to(model.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for key, (pixels, labels) in watched.items():
            curve[key].append(float((model.predict(pixels).argmax(1) == labels).float().mean()))
    return curve


def relearn_all(
    models: Mapping[str, PixelClassifier], data: RelearnData, repeats: int, seed: int, disable_progress: bool = True
) -> dict[str, dict[str, dict[str, list]]]:
    """Curves of every model, shared among the processes: name -> "forget" and, with ``data.retain``, "mixed" -> curve.

    A curve of several repeats is their mean; repeat i draws its batches with ``seed + i``, the same for every model.
    """
    kinds = {"forget": data._replace(retain=None)} | ({} if data.retain is None else {"mixed": data})
    tasks = [(name, kind, repeat) for name in models for kind in kinds for repeat in range(repeats)]
    with tqdm(total=len(tasks[:: rank_and_size()[1]]), desc="Relearning", disable=disable_progress) as bar:

        def work(task: tuple[str, str, int]) -> dict[str, list]:
            name, kind, repeat = task
            curve = relearning_curve(models[name], kinds[kind], STEPS, seed + repeat)
            bar.update()
            return curve

        runs = dict(zip(tasks, each_shared(work, tasks), strict=True))
    curves: dict[str, dict[str, dict[str, list]]] = {name: {} for name in models}
    for name, kind, _ in tasks[::repeats]:
        repeated = [runs[name, kind, repeat] for repeat in range(repeats)]
        curves[name][kind] = {key: np.mean([curve[key] for curve in repeated], 0).tolist() for key in repeated[0]}
    return curves
