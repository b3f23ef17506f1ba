"""Depth of forgetting: how fast a fine-tuning on forget images brings the forgotten class back (GKT, arXiv 2201.05629).

A model whose features no longer know the class has to learn it anew, as a retrained one must; where only the last
layer hides it, a few steps bring it back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..parallel.processes import each_shared, rank_and_size
from ..pipeline.classifier import PixelClassifier, to_unit

LEARNING_RATE = 1e-3  # Adam's, as in GKT's relearn time
STEPS = 20
BATCH = 32  # forget images a step; as many retained ones beside them in the mixed form


@dataclass(frozen=True)
class RelearnData:
    """forget and retain: (pixels uint8, labels) to fine-tune on, retain None for forget images alone; test_forgotten
    and test_retained: (pixels, labels) to watch."""

    forget: tuple[Tensor, Tensor]
    test_forgotten: tuple[Tensor, Tensor]
    test_retained: tuple[Tensor, Tensor]
    retain: tuple[Tensor, Tensor] | None = None


def relearning_curve(classifier: PixelClassifier, data: RelearnData, steps: int, seed: int = 0) -> dict[str, list]:
    """Fine-tune a copy of the model for some steps; the model itself is not touched.

    All weights train, by Adam at 1e-3, in eval mode (no dropout, batch-norm statistics as they are), on 32 forget
    images a step and, where ``data.retain`` is given, 32 retained ones.

    Returns:
        step: 0 .. ``steps``; acc_ut and acc_rt: accuracy in [0, 1] on the watched images after each of them.
    """
    model = copy.deepcopy(classifier).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    parts = [data.forget] if data.retain is None else [data.forget, data.retain]
    curve = {"step": list(range(steps + 1)), "acc_ut": [], "acc_rt": []}
    for step in range(steps + 1):
        if step:
            batches = [draw(part, generator) for part in parts]
            pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
            with torch.enable_grad():
                loss = F.cross_entropy(model(to_unit(pixels, model.device)), labels.to(model.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for key, (pixels, labels) in (("acc_ut", data.test_forgotten), ("acc_rt", data.test_retained)):
            curve[key].append(float((model.predict(pixels).argmax(1) == labels).float().mean()))
    return curve


def draw(part: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch drawn with replacement."""
    pixels, labels = part
    rows = torch.randint(len(pixels), (BATCH,), generator=generator)
    return pixels[rows], labels[rows]


def relearn_all(
    models: dict[str, PixelClassifier],
    data: RelearnData,
    retain: tuple[Tensor, Tensor] | None,
    repeats: int,
    seed: int,
    disable_progress: bool = True,
) -> dict[str, dict[str, dict]]:
    """Curves of every model, shared among the processes: name -> "forget" and, with ``retain``, "mixed" -> curve.

    A curve of several repeats is their mean; repeat i draws its batches with ``seed + i``, the same for every model.
    """
    kinds = {"forget": data} if retain is None else {"forget": data, "mixed": replace(data, retain=retain)}
    tasks = [(name, kind, repeat) for name in models for kind in kinds for repeat in range(repeats)]
    with tqdm(total=len(tasks[:: rank_and_size()[1]]), desc="Relearning", disable=disable_progress) as bar:

        def work(task):
            curve = relearning_curve(models[task[0]], kinds[task[1]], STEPS, seed + task[2])
            bar.update()
            return curve

        found = each_shared(work, tasks)
    curves: dict[str, dict[str, dict]] = {name: {} for name in models}
    for name in models:
        for kind in kinds:
            runs = [curve for task, curve in zip(tasks, found, strict=True) if task[:2] == (name, kind)]
            curves[name][kind] = {key: np.mean([run[key] for run in runs], 0).tolist() for key in runs[0]}
    return curves
