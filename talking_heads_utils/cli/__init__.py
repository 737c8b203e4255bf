"""The command line. Each command is a module: what it does stands at its top, ``add_arguments`` and ``run`` do it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from talking_heads_utils import progress
from talking_heads_utils.errors import TalkingHeadsError

COMMANDS = (
    "composition", "quantised", "atlas", "benchmark", "train", "seeds", "sweep", "edit", "reproduce", "power"
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; the modules behind them import nothing heavy before they run."""
    parser = argparse.ArgumentParser(
        prog="python -m talking_heads_utils",
        description="Channels between attention heads, read from weights. Each command explains itself with --help.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"talking_heads_utils.cli.{name}")
        about = str(module.__doc__)
        command = commands.add_parser(
            name, help=about.split(".")[0], description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 if it ended well, 2 for an error the user can mend, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    progress.show()
    try:
        args.run(args)
    except TalkingHeadsError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # one line, whatever library it quotes
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130
    finally:
        progress.hide()
    return 0
