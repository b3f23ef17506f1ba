"""zspag-hf unlearn | evaluate | compare | push | info. One file a command; none is imported before it is asked for."""

from __future__ import annotations

import argparse
import difflib
import sys
from importlib import import_module

from ..errors import UnlearningError
from .exit_status import status

COMMANDS = {
    "unlearn": "make a model forget classes or images, and say how far it has",
    "evaluate": "how far a model has forgotten that any tool unlearned",
    "compare": "several settings from the same start in one table; saves no model",
    "push": "publish a result on the Hub",
    "info": "what a model is made of, and has forgotten already",
}
EPILOG = """commands:
{}

example:
  zspag-hf unlearn --model_name_or_path user/vit --dataset_name user/photos --forget_classes cat

zspag-hf COMMAND --help tells the options of a command.
""".format("\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))


class TopParser(argparse.ArgumentParser):
    """Of the commands' names."""

    def error(self, message: str):
        """As every other bad input."""
        raise UnlearningError(f"{message}. See zspag-hf --help.")


def main(argv: list[str] | None = None) -> int:
    """Run one command line, by default this process' own; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    prefix = f"zspag-hf {argv[0]}: " if argv and argv[0] in COMMANDS else "zspag-hf: "
    return status(lambda: dispatch(argv), prefix)


def dispatch(argv: list[str]) -> int | None:
    """Import the command that is named, and run it."""
    parser = TopParser(
        "zspag-hf",
        usage="zspag-hf COMMAND [options]",
        description="Make Hugging Face image classifiers forget, without the rest of their training data.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv[:1])
    if asked.version:
        from .. import __version__

        print(f"zspag-hf {__version__}")
    elif asked.command is None:
        parser.print_help()
    elif asked.command not in COMMANDS:
        near = difflib.get_close_matches(asked.command, COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Give one of {', '.join(COMMANDS)}."
        raise UnlearningError(f"there is no command {asked.command!r}. {hint}")
    else:
        sys.path += [] if "" in sys.path else [""]  # for --method my_module:Mine; last, or evaluate.py would be found
        return import_module(f".{asked.command}", __name__).main(argv[1:])
    return None
