"""The command `broker`. Importing this package loads neither click nor trio: each subcommand brings what it needs, when it runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (default: the process's own) and leave with its exit code."""
    try:
        from broker.cli.running import run_command_line
    except KeyboardInterrupt:
        sys.exit(130)
    if sys.platform == "win32":  # a console is told UTF-8 by Python already; a pipe or a file gets what it gets on other systems
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale that has no such letters is no reason to fail
    if sys.stderr is None:  # closed, as by `2>&-`: Python would print on stdout what is meant for it, and a socket could get its number
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))
