"""zspag-hf unlearn: from a model's id to a model that has forgotten, with a report and a card."""

from __future__ import annotations

from typing import Any

from huggingface_hub import constants

from ..errors import UnlearningError
from .jobs import DataArguments, given_arguments, load_job, run
from .parsing import USAGE, parse_run
from .running import CommandArguments, MethodArguments, as_document, document, launch, page_hint, prepare, show

HELP: dict[str, Any] = {
    "prog": "zspag-hf unlearn",
    "usage": USAGE.format("unlearn"),
    "description": "Make an image classifier forget classes, or images, and say how far it has. Writes model, image\n"
    "processor, report, page, figures and model card into --output_dir; --push_to_hub publishes them.\n"
    "--method NAME --help shows the options of another method.",
    "examples": (
        "zspag-hf unlearn --model_name_or_path user/vit --dataset_name user/photos \\",
        "    --forget_classes cat --output_dir without-cat",
        "zspag-hf unlearn --config run.yaml --seed 1 --json > report.json",
    ),
}


def main(argv: list[str]) -> int | None:
    """Run the command; its exit status, None for 0."""
    data, beside, command, config, method = parse_run((DataArguments, MethodArguments, CommandArguments), argv, **HELP)
    if config.hub_model_id is not None and not config.push_to_hub:
        raise UnlearningError(
            f"hub_model_id={config.hub_model_id!r} without push_to_hub publishes nothing: add --push_to_hub, or use"
            " zspag-hf push afterwards."
        )
    if command.must_launch():
        return launch("unlearn", argv, command.num_processes, config.use_cpu)
    with document(command.json) as told:
        prepare(config)
        job = load_job(data, config, method)
        job.given |= given_arguments(beside)
        trainer = run(job, config, method, beside.rows(), data.level)
        if not trainer.is_world_process_zero():
            return None
        url = f"{constants.ENDPOINT}/{trainer.hub_model_id}" if config.push_to_hub else None
        report = trainer.unlearned("report")
        show(report, config.output_dir)
        print(page_hint(config.output_dir))
        print(
            f"publish: zspag-hf push {config.output_dir} --hub_model_id USER/NAME" if url is None else f"hub:     {url}"
        )
        told |= as_document(report, config.output_dir) | {"url": url}
    return None
