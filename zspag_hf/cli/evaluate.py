"""zspag-hf evaluate: how far a model has forgotten that any tool unlearned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..config import UnlearningConfig, option
from ..errors import UnlearningError
from ..evaluation import evaluate_unlearning
from ..hub.datasets import hub_id
from ..methods.zspag import ZSPAG
from ..report.report import UnlearningReport
from .jobs import DataArguments, load_job
from .parsing import CommandParser
from .running import (
    CommandArguments,
    as_document,
    check_no_model,
    document,
    launch,
    options_like,
    page_hint,
    prepare,
    show,
)

HELP: dict[str, Any] = {
    "prog": "zspag-hf evaluate",
    "usage": "zspag-hf evaluate --original MODEL --unlearned MODEL --dataset_name DATA --forget_classes ...",
    "description": "Say how far a model has forgotten that any tool unlearned, beside the original, the masked and\n"
    "retrained models. Writes report, page and figures into --output_dir.",
    "examples": (
        "zspag-hf evaluate --original user/vit --unlearned user/vit-without-cat \\",
        "    --dataset_name user/photos --forget_classes cat --retrained_models user/vit-retrained",
    ),
}
Options = options_like(
    *("dataset_name", "forget_classes", "image_column_name", "label_column_name", "label_offset", "model_revision"),
    *("hub_token", "cache_dir", "trust_remote_code", "allow_pickled_weights", "seed", "use_cpu", "disable_tqdm"),
)


@dataclass
class EvaluateArguments(DataArguments):
    """The models, and the images to judge them by."""

    model_name_or_path: str | None = field(default=None, init=False)
    public_dataset_name: str | None = field(default=None, init=False)
    public_split: str = field(default="train", init=False)
    original: str | None = option(
        None, "Hub id or folder of the model before.", group="model and data", metavar="MODEL", private=True
    )
    unlearned: str | None = option(
        None, "Hub id or folder of the model after.", group="model and data", metavar="MODEL", private=True
    )
    output_dir: str = option(
        "outputs/evaluated", "Where the results are written.", group="running", metavar="FOLDER", private=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.original is None or self.unlearned is None:
            raise UnlearningError("two models are needed: pass --original and --unlearned, Hub ids or folders.")
        check_no_model(self.output_dir)
        self.model_name_or_path = self.original


def main(argv: list[str]) -> int | None:
    """Run the command; its exit status, None for 0."""
    arguments, command, options = CommandParser((EvaluateArguments, CommandArguments, Options), **HELP).parse(argv)
    if command.must_launch():
        return launch("evaluate", argv, command.num_processes, options.use_cpu)
    config = UnlearningConfig(arguments.output_dir, **asdict(options))
    with document(command.json) as told:
        prepare(config)
        report = evaluate(arguments, config)
        if not config.distributed_state.is_main_process:
            return None
        report.save(arguments.output_dir)
        show(report, arguments.output_dir, "report and figures")
        print(page_hint(arguments.output_dir))
        told |= as_document(report, arguments.output_dir)
    return None


def evaluate(arguments: EvaluateArguments, config: UnlearningConfig) -> UnlearningReport:
    """The report on what the arguments name, loaded and checked as a run would."""
    job = load_job(arguments, config, ZSPAG())
    report = evaluate_unlearning(
        job.model,
        arguments.unlearned,
        job.forget,
        job.test,
        list(config.forget_classes or []),
        retain=job.retain,
        retrained=job.retrained,
        level=arguments.level,
        processing_class=job.processor,
        label_offset=config.label_offset,
        label_mapping=job.mapping,
        image_column_name=config.image_column_name,
        label_column_name=config.label_column_name,
        seed=config.seed,
        hub=config.other_hub,
        disable_progress=bool(config.disable_tqdm),
    )
    report.dataset = hub_id(config.dataset_name)
    return report
