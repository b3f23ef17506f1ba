"""zspag-hf compare: several settings from the same start, in one table."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

import yaml

from ..config import Option, UnlearningConfig, option
from ..errors import UnlearningError
from ..methods import Method, find_method
from ..report.report import MODELS
from .jobs import BASELINES, DataArguments, Setting, given_arguments, load_job, run
from .parsing import USAGE, CommandParser, options_of, parse_run, yaml_mapping
from .running import (
    CommandArguments,
    MethodArguments,
    as_document,
    check_no_model,
    document,
    launch,
    page_hint,
    prepare,
    show,
)

HELP: dict[str, Any] = {
    "prog": "zspag-hf compare",
    "usage": USAGE.format("compare"),
    "description": "Unlearn under several settings, each from the same start, and show them in one table. Writes\n"
    "report, page and figures into --output_dir, and no model. The row 'unlearned' is the run that the\n"
    "options describe.",
    "hidden": {name for name in vars(UnlearningConfig) if name.startswith("hub_")} - {"hub_token"} | {"push_to_hub"},
    "examples": (
        "zspag-hf compare --model_name_or_path user/vit --dataset_name user/photos \\",
        "    --forget_classes cat --baselines all",
        "zspag-hf compare --config run.yaml --baselines none --settings settings.yaml",
        "",
        "settings.yaml, a row of the table each:",
        "  head only:     {scope: head}",
        "  larger budget: {proxy_budget: 0.05, seed: 1}",
        "  SalUn:         {method: salun, sparsity: 0.3}",
    ),
}


FOLDER = "outputs/compared"


@dataclass
class MethodName:
    """Of a row."""

    method: str = "zspag"


@dataclass
class CompareArguments(MethodArguments):
    """The rows beside the main one."""

    baselines: str = field(default="few", metadata=MethodArguments.__dataclass_fields__["baselines"].metadata)
    settings: str | None = option(
        None,
        "YAML file: name of a row -> the options in which it differs.",
        group="evaluation",
        metavar="FILE",
        private=True,
    )


def main(argv: list[str]) -> int | None:
    """Run the command; its exit status, None for 0."""
    types = (DataArguments, CompareArguments, CommandArguments)
    data, beside, command, config, method = parse_run(types, argv, defaults={"output_dir": FOLDER}, **HELP)
    settings = beside.rows() | own_settings(beside.settings, method)
    check(settings, config)
    if command.must_launch():
        return launch("compare", argv, command.num_processes, config.use_cpu)
    with document(command.json) as told:
        prepare(config)
        job = load_job(data, config, method)
        job.given |= given_arguments(beside)
        trainer = run(job, config, method, settings, data.level, save=False)
        if not trainer.is_world_process_zero():
            return None
        report = trainer.unlearned("report")
        show(report, config.output_dir, "report and figures")
        print(page_hint(config.output_dir))
        told |= as_document(report, config.output_dir)
    return None


def check(settings: dict[str, Setting], config: UnlearningConfig) -> None:
    """Refuse what a comparison cannot do, before the first row runs.

    Raises:
        UnlearningError: nothing to compare with, a push, or a folder that holds a model.
    """
    if not settings:
        raise UnlearningError("there is nothing to compare with: give --baselines few or all, or --settings.")
    if config.push_to_hub:
        raise UnlearningError("compare saves no model, so nothing can be pushed: leave push_to_hub out.")
    check_no_model(config.output_dir)


def own_settings(path: str | None, main_method: Method) -> dict[str, Setting]:
    """The rows that a YAML file asks for: options of the run and of the main method, or of another that a row names.

    Raises:
        UnlearningError: a name that the table has already, something that is no option of a run, or out of its range.
    """
    if path is None:
        return {}
    taken = {*MODELS, *(name for rows in BASELINES.values() for name in rows)}
    settings: dict[str, Setting] = {}
    for key, node in yaml_mapping(path).value:
        if key.value in taken | set(settings):
            raise UnlearningError(f"{path}: the table has a row {key.value!r} already: give it another name.")
        if not isinstance(node, yaml.MappingNode):
            raise UnlearningError(f"{path}: {key.value!r} holds no options: write it as {key.value}: {{scope: head}}.")
        try:
            settings[key.value] = setting_of(node, f"{path}: {key.value}", main_method)
        except UnlearningError as error:
            raise UnlearningError(f"the setting {key.value!r}: {error}") from error
    return settings


def setting_of(node: yaml.MappingNode, origin: str, main_method: Method) -> Setting:
    """One row of a YAML file."""
    named = {key.value: value.value for key, value in node.value}.get("method")
    kind = type(main_method) if named is None else find_method(named)
    options = options_of(kind)
    parser = CommandParser((MethodName, UnlearningConfig, options), prog="zspag-hf compare")
    shared = {one.name for one in fields(UnlearningConfig) if one.name != "seed" and of_no_row(one)}
    given = parser.typed(node, origin, parser.options - shared)
    own = {one.name for one in fields(options)}
    changes = {name: given.pop(name) for name in list(given) if name not in own and name != "method"}
    given.pop("method", None)
    return Setting(replace(main_method, **given) if named is None else kind(**given), changes)


def of_no_row(one: Field) -> bool:
    """Whether an option is the same in every row: the model, the data, the request, the Hub, where it runs."""
    known = one.metadata.get("help")
    return isinstance(known, Option) and known.group in ("model and data", "request", "hub", "running")
