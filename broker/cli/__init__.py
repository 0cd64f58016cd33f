"""The command `broker`. Importing this package loads neither click nor trio: each subcommand brings what it needs, when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (default: the process's own) and leave with its exit code."""
    from broker.cli.running import run_command_line

    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))
