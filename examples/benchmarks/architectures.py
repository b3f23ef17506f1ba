"""Every model type that AutoModelForImageClassification maps, as a tiny random model: what of it is constrained, and
whether a short run under the hard constraint makes it forget. Prints a markdown table.

    python examples/benchmarks/architectures.py

The models are those of the test suite (tests/cases.py). The forget loss is the cross-entropy to the pseudo-labels,
before and after six steps; how far that says anything about forgetting, a random model cannot tell. The run also checks
what the suite asserts: (W - W0) U vanishes, nothing else moved, and the saved model reloads equal.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from cases import MODELS, ModelCase
from tiny_runs import FIXED, case_trainer, leak

from zspag_hf.hub.architectures import REFUSED_TYPES
from zspag_hf.pipeline.layers import LAYER_TYPES


def row(case: ModelCase, folder: Path) -> list[str]:
    """Cells of one model, after a run that forgets."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = case_trainer(case, folder, **FIXED)
        model = trainer.model
        state = {key: value.clone() for key, value in model.state_dict().items()}
        trainer.train()
        trainer.save_model()
    run = trainer.run
    after = F.cross_entropy(run.classifier.predict(run.plan.pixels), run.plan.targets)
    loaded = AutoModelForImageClassification.from_pretrained(trainer.args.output_dir).state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    exact = leak(trainer) < 1e-5 and moved <= {f"{name}.weight" for name in run.layers}
    exact = exact and all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
    model.load_state_dict(state)
    before = F.cross_entropy(run.classifier.predict(run.plan.pixels), run.plan.targets)
    layers = sum(isinstance(module, LAYER_TYPES) for module in model.modules())
    left = f" ({layers - len(run.layers)} {case.why})" if case.why else ""
    verdict = f"unlearns, {before:.4f} to {after:.4f}" if exact and after < before else "FAILS"
    kind = model.config.model_type
    return [
        kind if case.name == kind else f"{kind} ({case.name})",
        f"{len(run.layers)} of {layers}{left}",
        f"`{run.head}`",
        verdict,
    ]


def main() -> None:
    """Run the command line."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print("| model type | linear and convolution layers constrained | head | forget loss |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(case, Path(folder) / case.name) for case in MODELS if case.on_hub]
    rows += [[kind, "", "", f"refused: {why}"] for kind, (why, _) in REFUSED_TYPES.items()]
    for cells in sorted(rows):
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
