"""A large model through the whole pipeline: each stage's time, memory and share of the hardware's peak.

    python examples/benchmarks/large.py --peak_tflops 67 --bf16 true
    python examples/benchmarks/large.py --size small

ViT-B/16 at 224 pixels with 1,000 classes and random weights, 1,300 random forget images, the defaults otherwise. Meant
for a GPU; ``--peak_tflops`` is what its data sheet says for float32, in which all but the training steps run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from measure import DEVICE, add_results, row
from models import architecture, benchmark_parser, described, random_case, random_images, silence
from scaling import WatchedRun
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from zspag_hf.methods import Run

IMAGES = {"real": 1300, "small": 24}
STEPS = {"real": -1, "small": 10}


class Operations(TorchDispatchMode):
    """Counts floating-point operations; torch's own FlopCounterMode cannot be used around ``autograd.grad``."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


@dataclass
class CountedRun(Run):
    """Keeps the floating-point operations of each stage; counting takes time, so another run is timed."""

    operations: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str):
        """As every run."""
        with super().timed(name), Operations() as counter:
            yield
        self.operations[name] = self.operations.get(name, 0) + counter.total


def main() -> None:
    """Run the command line."""
    parser = benchmark_parser(__doc__, repeats=1)
    parser.add_argument("--images", type=int, help="forget images; unset: 1,300")
    parser.add_argument("--max_steps", type=int, help="as the option of a run")
    parser.add_argument("--bf16", type=lambda word: word.lower() == "true", default=False, help="in training steps")
    parser.add_argument("--peak_tflops", type=float, help="of the hardware, for shares of it")
    arguments = parser.parse_args()
    model, processor = architecture("ViT-B/16", arguments.size)
    images = random_images(arguments.images or IMAGES[arguments.size], processor.size["height"])
    steps = arguments.max_steps or STEPS[arguments.size]
    case = random_case(model.to(DEVICE), processor, images, 1, bf16=arguments.bf16, max_steps=steps)
    with silence() as folder:
        counted = case.again().trainer(folder, CountedRun)
        counted.train()
        trainer = case.trainer(folder, WatchedRun)
        trainer.train()
    report, what = trainer.report, f"{described(case)}, {len(images):,} forget images"
    rates = {name: count / report.timings_s[name] / 1e12 for name, count in counted.run.operations.items()}
    rows = [
        row(f"{what}: time, {report.choice['steps']} steps", report.timings_s, unit="s"),
        row(f"{what}: peak memory", trainer.run.peaks, unit="MB"),
        row(f"{what}: operations a second", rates, unit="Tflop/s"),
    ]
    if arguments.peak_tflops is not None:
        shares = {name: rate / arguments.peak_tflops for name, rate in rates.items()}
        rows.append(row(f"{what}: share of the hardware's peak", shares))
    add_results(arguments.output, "default run", rows)


if __name__ == "__main__":
    main()
