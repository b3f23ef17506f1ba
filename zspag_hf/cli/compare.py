"""zspag-hf compare: several settings from the same start, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import yaml

from ..config import UnlearningConfig
from ..errors import UnlearningError
from ..report.report import MODELS
from .help import GROUPS
from .jobs import BASELINES, DataArguments, load_job, run
from .parsing import USAGE, CommandParser, yaml_mapping
from .running import (
    BaselineArguments,
    CommandArguments,
    as_document,
    check_no_model,
    document,
    launch,
    page_hint,
    prepare,
    show,
)

SHARED = {*GROUPS["model and data"], *GROUPS["request"], *GROUPS["hub"], *GROUPS["running"]} - {"seed"}
HELP = {
    "prog": "zspag-hf compare",
    "usage": USAGE.format("compare"),
    "description": "Unlearn under several settings, each from the same start, and show them in one table. Writes\n"
    "report, page and figures into --output_dir, and no model. The row 'unlearned' is the run that the\n"
    "options describe.",
    "hidden": set(GROUPS["hub"]) - {"hub_token"},
    "examples": (
        "zspag-hf compare --model_name_or_path user/vit --dataset_name user/photos \\",
        "    --forget_classes cat --baselines all",
        "zspag-hf compare --config run.yaml --baselines none --settings settings.yaml",
        "",
        "settings.yaml, a row of the table each:",
        "  head only:     {scope: head}",
        "  larger budget: {proxy_budget: 0.05, seed: 1}",
    ),
}


@dataclass
class CompareArguments(BaselineArguments):
    baselines: str = field(default="few", metadata=BaselineArguments.__dataclass_fields__["baselines"].metadata)
    settings: str | None = field(
        default=None, metadata={"help": "YAML file: name of a row -> the options in which it differs."}
    )


def main(argv: list[str]) -> int | None:
    parser = CommandParser((DataArguments, CompareArguments, CommandArguments, UnlearningConfig), **HELP)
    parser.set_defaults(output_dir="outputs/compared")
    data, beside, command, config = parser.parse(argv)
    settings = BASELINES[beside.baselines] | own_settings(parser, beside.settings, config)
    check(settings, config)
    if command.must_launch():
        return launch("compare", argv, command.num_processes, config.use_cpu)
    with document(command.json) as found:
        prepare(config)
        trainer = run(load_job(data, config), config, settings, data.level, save=False)
        if not trainer.is_world_process_zero():
            return None
        show(trainer.report, config.output_dir, "report and figures")
        print(page_hint(config.output_dir))
        found |= as_document(trainer.report, config.output_dir)
    return None


def check(settings: dict[str, dict], config: UnlearningConfig) -> None:
    """Refuse what a comparison cannot do, and settings that no run would take, before the first one runs.

    Raises:
        UnlearningError: nothing to compare with, a push, a folder that holds a model, or a setting out of its range.
    """
    if not settings:
        raise UnlearningError("there is nothing to compare with: give --baselines few or all, or --settings.")
    if config.push_to_hub:
        raise UnlearningError("compare saves no model, so nothing can be pushed: leave push_to_hub out.")
    check_no_model(config.output_dir)
    for name, options in settings.items():
        try:
            config.but(**options)
        except ValueError as error:
            raise UnlearningError(f"the setting {name!r}: {error}") from error


def own_settings(parser: CommandParser, path: str | None, config: UnlearningConfig) -> dict[str, dict]:
    """The rows that a YAML file asks for.

    Raises:
        UnlearningError: a name that the table has already, or something that is no option of a run.
    """
    if path is None:
        return {}
    allowed = {f.name for f in fields(UnlearningConfig) if f.init} - SHARED
    taken, found = {*MODELS, *(name for rows in BASELINES.values() for name in rows)}, {}
    for key, node in yaml_mapping(path).value:
        if key.value in taken | set(found):
            raise UnlearningError(f"{path}: the table has a row {key.value!r} already: give it another name.")
        if not isinstance(node, yaml.MappingNode):
            raise UnlearningError(f"{path}: {key.value!r} holds no options: write it as {key.value}: {{scope: head}}.")
        found[key.value] = parser.typed(node, f"{path}: {key.value}", allowed)
    return found
