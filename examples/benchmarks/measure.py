"""What the benchmarks share: interleaved timing, peak memory, facts on the machine, and the file of results.

    python examples/benchmarks/measure.py

writes the second part of RESULTS.md anew from results.json, which overhead.py, speed.py and scaling.py fill; the first
part, on the tables of tables.py, is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from zspag_hf.report.report import versions

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results.json", HERE / "RESULTS.md"
MARK = "<!-- from here on written by measure.py -->"
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PRIVATE = {"--model_name_or_path": "MODEL", "--dataset_name": "DATA"}  # options whose values are left out of results

# ---------------------------------------------------------------------------------------------------------- time


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call, a GPU's work included."""
    if ON_GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(prepare: Mapping[str, Callable[[], Callable[[], object]]], repeats: int) -> dict[str, float]:
    """Median seconds of several things, timed in turn, every other round in reverse, so that what else the machine does
    falls on all of them alike. A round before the first one warms up.

    Args:
        prepare: name -> a function that makes ready, untimed, and returns what is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in prepare}
    for turn in range(repeats + 1):
        for name in list(prepare) if turn % 2 else reversed(prepare):
            times[name].append(seconds(prepare[name]()))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


# -------------------------------------------------------------------------------------------------------- memory


def memory_mb(field: str) -> float:
    """A field of this process's status, in MB: VmRSS is what it holds, VmHWM the most that it held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"this system does not tell {field}: measure memory on Linux or on a GPU.")


def reset_peak() -> float:
    """Let the peak begin anew; returns what is held now, in MB.

    The peak is not ``getrusage``'s ``ru_maxrss``: that cannot be reset, and a process begins with its parent's.
    """
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def peak_mb() -> float:
    """The most that was held since :func:`reset_peak`, or ever, in MB: of the process, or tensors on the GPU."""
    return torch.cuda.max_memory_allocated() / 1e6 if ON_GPU else memory_mb("VmHWM")


def in_fresh_process(function: Callable, *arguments):
    """``function(*arguments)`` in a process that has imported the library and done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --------------------------------------------------------------------------------------------------------- facts


def machine() -> dict:
    """Processor, cores that this process may use, threads of torch, and GPU: no name of the machine."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    gpu = torch.cuda.get_device_name() if ON_GPU else None
    return {"cpu": processor_name(), "cores": cores, "threads": torch.get_num_threads(), "gpu": gpu}


def processor_name() -> str:
    """As the system calls it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line(argv: list[str]) -> str:
    """The command as anybody can give it: MODEL and DATA for paths, and without the file of results."""
    words, rest = [], iter(argv[1:])
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in (*PRIVATE, "--output"):
            words += [name, PRIVATE[name]] if name in PRIVATE else []
            _ = equals or next(rest)
        else:
            words.append(word)
    return shlex.join(["python", f"examples/benchmarks/{Path(argv[0]).name}", *words])


# ------------------------------------------------------------------------------------------------------- results


def row(measure: str, found: float | dict[str, float], asked: str | None = None, unit: str = "") -> dict:
    """One line of the table.

    Args:
        found: a number, or several by name. asked: for example "at most 0.08".
    """
    return {"measure": measure, "found": found, "unit": unit, "asked": asked}


def add_results(path: Path, part: str, rows: list[dict], subject: str = "") -> None:
    """Print the rows of one part of the script that runs, and put them into the file, in place of its earlier ones.

    Args:
        subject: the model, where the rows do not name it.

    Raises:
        ValueError: a number that is not finite.
    """
    print("\n".join(lines(rows)), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    facts = {"command": command_line(sys.argv), "machine": machine(), "versions": versions()}
    results.setdefault(Path(sys.argv[0]).stem, {})[part] = {"rows": rows, "subject": subject, **facts}
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def number(value: float, unit: str = "") -> str:
    """Three digits, and the unit."""
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def found_text(line: dict) -> str:
    """What a row found, in words."""
    found = line["found"]
    if isinstance(found, dict):
        return ", ".join(f"{name} {number(value)}" for name, value in found.items()) + f" {line['unit']}".rstrip()
    return number(found, line["unit"])


def lines(rows: list[dict]) -> list[str]:
    """A markdown table."""
    head = ["| measure | found | asked for |", "|---|---|---|"]
    return head + [f"| {line['measure']} | {found_text(line)} | {line['asked'] or ''} |" for line in rows]


def markdown(results: dict) -> str:
    """One section a script: its table, and by which commands, on which machine, with which versions it was found."""
    text = [MARK]
    for script, parts in results.items():
        text += ["", f"## {script}.py", "", *lines([line for part in parts.values() for line in part["rows"]]), ""]
        runs: dict[str, list[str]] = {}
        for name, part in parts.items():
            runs.setdefault(facts_text(part), []).append(name)
        text += [f"- {', '.join(names)}: {facts}" for facts, names in runs.items()]
    return "\n".join(text) + "\n"


def facts_text(part: dict) -> str:
    """By which command, on which machine and with which versions."""
    facts = part["machine"]
    where = [facts["gpu"] or facts["cpu"], f"{facts['cores']} cores", f"{facts['threads']} threads"]
    packages = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return "; ".join(filter(None, [f"`{part['command']}`", part["subject"], ", ".join(where), packages]))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    page = arguments.output.read_text(encoding="utf-8") if arguments.output.exists() else "# Results\n\n"
    arguments.output.write_text(page.split(MARK)[0] + markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
