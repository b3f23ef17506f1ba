"""zspag-hf push: publish a result that is saved already. Its help and its refusals of options import nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UnlearningError

WORDS = {"true": True, "false": False}
HELP: dict[str, Any] = {
    "prog": "zspag-hf push",
    "usage": "zspag-hf push FOLDER --hub_model_id USER/NAME [options]",
    "description": "Publish the result of an unlearning on the Hub: weights, config, image processor, model card,\n"
    "report, page and figures, as one commit. Nothing that stands for a single image leaves the machine.",
    "epilog": "examples:\n  zspag-hf push without-cat --hub_model_id user/vit-without-cat --hub_private_repo true",
}


class PushParser(argparse.ArgumentParser):
    """The command's options."""

    def __init__(self):
        super().__init__(**HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        flag: dict[str, Any] = {"nargs": "?", "const": True, "type": truth, "metavar": "true|false"}
        self.add_argument("folder", nargs="?", metavar="FOLDER", help="the output_dir of a finished run")
        self.add_argument("--hub_model_id", metavar="USER/NAME", help="repository, made where there is none")
        self.add_argument("--hub_private_repo", **flag, help="make it private; unset: as the account's default is")
        self.add_argument("--revision", help="branch to commit to, made where there is none; unset: the main branch")
        self.add_argument("--create_pr", **flag, default=False, help="open a pull request in place of committing")
        self.add_argument("--replace", **flag, default=False, help="replace another model that stands there")
        self.add_argument("--hub_token", metavar="TOKEN", help="unset: the one of `hf auth login`")
        self.add_argument("--json", **flag, default=False, help="one JSON document on stdout, the rest on stderr")

    def error(self, message: str):
        """As every other bad input."""
        raise UnlearningError(f"{message}. See {self.prog} --help.")


def truth(text: str) -> bool:
    """ "true" or "false"."""
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return WORDS[text.lower()]


def main(argv: list[str]) -> None:
    """Run the command."""
    given = PushParser().parse_args(argv)
    if given.folder is None or given.hub_model_id is None:
        raise UnlearningError("what and where to is needed: zspag-hf push FOLDER --hub_model_id USER/NAME.")
    from ..data.request import described  # these take seconds, which --help does not
    from ..trainer.publishing import check_result, push_folder
    from .running import document

    with document(given.json) as told:
        request = check_result(given.folder).request or {}
        commit = push_folder(
            given.folder,
            given.hub_model_id,
            token=given.hub_token,
            private=given.hub_private_repo,
            revision=given.revision,
            create_pr=given.create_pr,
            replace=given.replace,
            commit_message=f"Forget {described(request)}",
        )
        print(f"pushed: {commit.pr_url or commit.repo_url.url}")
        told |= {"url": commit.repo_url.url, "commit_url": commit.commit_url, "pr_url": commit.pr_url}
