"""zspag-hf unlearn: from a model's id to a model that has forgotten, with a report and a card."""

from __future__ import annotations

from huggingface_hub import constants

from ..config import UnlearningConfig
from ..errors import UnlearningError
from .jobs import BASELINES, DataArguments, load_job, run
from .parsing import USAGE, parse
from .running import BaselineArguments, CommandArguments, as_document, document, launch, page_hint, prepare, show

HELP = {
    "prog": "zspag-hf unlearn",
    "usage": USAGE.format("unlearn"),
    "description": "Make an image classifier forget classes, or images, and say how far it has. Writes model, image\n"
    "processor, report, page, figures and model card into --output_dir; --push_to_hub publishes them.",
    "examples": (
        "zspag-hf unlearn --model_name_or_path user/vit --dataset_name user/photos \\",
        "    --forget_classes cat --output_dir without-cat",
        "zspag-hf unlearn --config run.yaml --seed 1 --json > report.json",
    ),
}


def main(argv: list[str]) -> int | None:
    types = (DataArguments, BaselineArguments, CommandArguments, UnlearningConfig)
    data, beside, command, config = parse(types, argv, **HELP)
    if config.hub_model_id is not None and not config.push_to_hub:
        raise UnlearningError(
            f"hub_model_id={config.hub_model_id!r} without push_to_hub publishes nothing: add --push_to_hub, or use"
            " zspag-hf push afterwards."
        )
    if command.must_launch():
        return launch("unlearn", argv, command.num_processes, config.use_cpu)
    with document(command.json) as found:
        prepare(config)
        trainer = run(load_job(data, config), config, BASELINES[beside.baselines], data.level)
        if not trainer.is_world_process_zero():
            return None
        url = f"{constants.ENDPOINT}/{trainer.hub_model_id}" if config.push_to_hub else None
        show(trainer.report, config.output_dir)
        print(page_hint(config.output_dir))
        print(
            f"publish: zspag-hf push {config.output_dir} --hub_model_id USER/NAME" if url is None else f"hub:     {url}"
        )
        found |= as_document(trainer.report, config.output_dir) | {"url": url}
    return None
