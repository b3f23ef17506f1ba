"""zspag-hf push: publish a result that is saved already."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data.request import described
from ..errors import UnlearningError
from ..trainer.publishing import check_result, push_folder
from .parsing import CommandParser
from .running import JsonArguments, document, options_like

HELP = {
    "prog": "zspag-hf push",
    "usage": "zspag-hf push FOLDER --hub_model_id USER/NAME [options]",
    "description": "Publish the result of an unlearning on the Hub: weights, config, image processor, model card,\n"
    "report, page and figures, as one commit. Nothing that stands for a single image leaves the machine.",
    "examples": ("zspag-hf push without-cat --hub_model_id user/vit-without-cat --hub_private_repo true",),
}
Options = options_like("hub_model_id", "hub_private_repo", "hub_token")


@dataclass
class PushArguments:
    revision: str | None = field(
        default=None, metadata={"help": "Branch to commit to, made where there is none; unset: the main branch."}
    )
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request in place of committing."})


def main(argv: list[str]) -> None:
    parser = CommandParser((PushArguments, JsonArguments, Options), **HELP)
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="The output_dir of a finished run.")
    arguments, command, options, given = parser.parse(argv)
    if given.folder is None or options.hub_model_id is None:
        raise UnlearningError("what and where to is needed: zspag-hf push FOLDER --hub_model_id USER/NAME.")
    with document(command.json) as found:
        entry = check_result(given.folder).request
        commit = push_folder(
            given.folder,
            options.hub_model_id,
            token=options.hub_token,
            private=options.hub_private_repo,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            commit_message=f"Forget {described(entry)}",
        )
        print(f"pushed: {commit.pr_url or commit.repo_url.url}")
        found |= {"url": commit.repo_url.url, "commit_url": commit.commit_url, "pr_url": commit.pr_url}
