"""Time and peak memory of the default run, by stage, against forget images, proxies, classes, width and processes.

    python examples/benchmarks/scaling.py
    python examples/benchmarks/scaling.py --model_name_or_path MODEL --dataset_name DATA --forget_classes cat

Every run is a fresh process; each is repeated in turn and the medians are kept. Classes: the model with random heads of
so many classes, at the same number of proxies. Width: small ViTs with random weights. Processes: one thread each, by
torch.distributed.run; on a machine with several GPUs give --processes 1 2 4, one GPU each.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import add_results, in_fresh_process, peak_mb, reset_peak, row
from models import (
    Case,
    case_parser,
    described,
    load_case,
    processor,
    random_case,
    random_model,
    silence,
    vit,
    with_random_head,
)
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from zspag_hf.methods import Run
from zspag_hf.methods.run import state_tensors

AXES = {
    "forget images": {"real": [125, 250, 500, 1000], "small": [12, 24]},
    "proxies": {"real": [125, 250, 500, 1000], "small": [8]},
    "classes": {"real": [10, 200, 1000], "small": [4, 9]},
    "width": {"real": [64, 128, 256, 384], "small": [16]},
}
SAME_PROXIES = {"real": 796, "small": 16}  # which 9, 199 and 999 retained classes share out alike
WEIGHTS, TIMINGS = "weights.safetensors", "timings.json"


@dataclass
class WatchedRun(Run):
    """Keeps the peak memory of each stage, in MB."""

    peaks: dict[str, float] = field(default_factory=lambda: {"before": reset_peak()})

    @contextlib.contextmanager
    def timed(self, name: str):
        """As every run."""
        reset_peak()
        with super().timed(name):
            yield
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak_mb())


# ------------------------------------------------------------------------------------------------------------ points


def pictures(case: Case, count: int) -> list[Image]:
    """The case's forget images, over again where there are fewer."""
    column, forget = case.config.image_column_name, case.job.forget
    return list(forget.select([i % len(forget) for i in range(count)])[column])


def case_at(arguments: Namespace, axis: str, value: int) -> Case:
    """The case of the options with one thing changed."""
    case = load_case(arguments)
    model, made, method = case.job.model, case.job.processor, case.method
    if axis == "forget images":
        rows = [i % len(case.job.forget) for i in range(value)]
        return replace(case, job=replace(case.job, forget=case.job.forget.select(rows)))
    if axis == "proxies":
        return replace(case, method=replace(method, max_proxies=value, proxies_per_class=value))
    images, steps = pictures(case, arguments.max_forget_samples), case.config.max_steps
    if axis == "classes":
        method = replace(method, max_proxies=SAME_PROXIES[arguments.size])
        return random_case(with_random_head(model, made, value), made, images, method=method, max_steps=steps)
    settings = {"hidden_size": value, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 3 * value}
    side = 32 if arguments.size == "real" else 8
    model = random_model(vit(side, side // 4, settings), 10)
    return random_case(model, processor(side), images, 1, method, max_steps=steps)


def measured_run(arguments: Namespace, axis: str, value: int) -> dict:
    """Seconds and peak memory by stage, and what explains them. For a fresh process."""
    torch.set_num_threads(arguments.threads)
    with silence() as folder:
        trainer = case_at(arguments, axis, value).trainer(folder, WatchedRun)
        trainer.train()
    report = trainer.report
    return {
        "s": report.timings_s,
        "MB": trainer.run.peaks,
        "counts": {"proxies": report.proxies["count"], "steps": report.choice["steps"]},
    }


def medians(runs: list[dict], kind: str) -> dict[str, float]:
    """Of each number of that kind over the runs."""
    return {name: statistics.median(run[kind][name] for run in runs) for name in runs[0][kind]}


def axis_part(axis: str, arguments: Namespace) -> list[dict]:
    """Rows of one axis: every value by stage, and the last one's time over the first one's."""
    values = AXES[axis][arguments.size]
    runs: dict[int, list[dict]] = {value: [] for value in values}
    for _ in range(arguments.repeats):
        for value in values:
            runs[value].append(in_fresh_process(measured_run, arguments, axis, value))
    rows, totals, steps = [], {}, {}
    for value, found in runs.items():
        times = medians(found, "s")
        counts = medians(found, "counts")
        totals[value], steps[value] = times["total"], times["training"] / counts["steps"]
        what = f"{axis}, {value:,} ({counts['proxies']:.0f} proxies, {counts['steps']:.0f} steps)"
        rows += [row(f"{what}: time", times, unit="s"), row(f"{what}: peak memory", medians(found, "MB"), unit="MB")]
    if len(values) > 1:
        asked = "at most 1.5" if axis == "classes" else None
        what, (first, last) = f"{axis}, {values[-1]:,} over {values[0]:,}", (values[0], values[-1])
        rows += [
            row(f"{what}: time", totals[last] / totals[first], asked),
            row(f"{what}: time of a training step", steps[last] / steps[first]),
        ]
    return rows


# --------------------------------------------------------------------------------------------------------- processes


def work(arguments: Namespace) -> None:
    """One of several processes: a default run at the same total batch; the first writes weights and timings."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    case = load_case(arguments)
    with silence() as folder:
        batch = max(1, case.config.per_device_train_batch_size // size)
        trainer = case.trainer(folder, per_device_train_batch_size=batch)
        trainer.train()
        if trainer.is_world_process_zero():
            weights = {name: tensor.contiguous() for name, tensor in state_tensors(trainer.model).items()}
            save_file(weights, arguments.worker / WEIGHTS)
            (arguments.worker / TIMINGS).write_text(json.dumps(trainer.report.timings_s))


def launched(count: int, folder: Path) -> dict:
    """Weights and timings of a run in so many processes, one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, *sys.argv, "--worker", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {"weights": load_file(folder / WEIGHTS), "s": json.loads((folder / TIMINGS).read_text())}


def processes_part(arguments: Namespace) -> list[dict]:
    """The same run by several processes."""
    runs: dict[int, list[dict]] = {count: [] for count in arguments.processes}
    load_case(arguments)  # trains the digits' classifier before several processes want it
    for _ in range(arguments.repeats):
        for count, found in runs.items():
            with TemporaryDirectory() as folder:
                found.append(launched(count, Path(folder)))
    first, *others = arguments.processes
    alone, weights = medians(runs[first], "s"), runs[first][-1]["weights"]
    rows = [row(f"processes, {first} of one thread: time", alone, unit="s")]
    for count in others:
        times, theirs = medians(runs[count], "s"), runs[count][-1]["weights"]
        difference = max(float((weights[n].double() - theirs[n].double()).abs().max()) for n in weights)
        rows += [
            row(f"processes, {count} of one thread: time", times, unit="s"),
            row(f"processes, {first} over {count}: time", alone["total"] / times["total"]),
            row(f"processes, {first} and {count}: largest difference of a weight", difference, "at most 0.00001"),
        ]
    return rows


def main() -> None:
    """Run the command line."""
    parser = case_parser(__doc__, repeats=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", type=Path, help="of this script's own: where one of the processes writes")
    arguments = parser.parse_args()
    arguments.threads = torch.get_num_threads()
    if arguments.worker is not None:
        work(arguments)
        return
    case = described(load_case(arguments))
    for part in arguments.parts:
        subject = "ViT of 4 layers, random weights" if part == "width" else case
        add_results(arguments.output, part, PARTS[part](arguments), subject)


PARTS = {**{axis: partial(axis_part, axis) for axis in AXES}, "processes": processes_part}

if __name__ == "__main__":
    main()
