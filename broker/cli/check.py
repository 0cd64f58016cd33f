"""`broker check`: every mistake of a config file, each in one line with its place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from broker.cli import values
from broker.cli.running import DONE, FAILED, say, show
from broker.errors import ConfigError

if TYPE_CHECKING:
    from broker.config import Config


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Read a config file and list every mistake in it: the file, the key, what was expected. Nothing is started.",
    epilog="Exit codes: 0 the file is good, 1 it is not, 2 wrong usage.",
    short_help="Check a config file",
)
@click.argument("file", type=values.path)
def command(file: str) -> int:
    from broker.config import Config

    try:
        _check(Config.load(file), file)
    except ConfigError as error:
        for line in problem_lines(error):
            say(line)
        return FAILED
    show(f"{file}: ok")
    return DONE


def _store_fault(path: str) -> str | None:
    return f"{path} is no file; choose another path" if os.path.exists(path) and not os.path.isfile(path) else None


def _check(config: Config, file: str) -> None:
    """What `broker serve` refuses in a file that is right in itself. ConfigError."""
    from broker.cli.logs import file_fault, target_fault

    store = config.store.path
    faults = (("log.target", target_fault(config.log.target)), ("store.path", None if store is None else file_fault(store) or _store_fault(store)))
    problems = [(key, fault) for key, fault in faults if fault is not None]
    try:
        refuse_open(config, file)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, file)


_WITHOUT_A_FILE: Final = (
    "ask who comes in, with password_file in a config file (-c FILE; see 'broker passwd --help'), or let everybody in with --allow-anonymous "
    "(allow_anonymous = true in the file)"
)
_IN_A_FILE: Final = (
    "set password_file (broker passwd -c FILE USER makes one), or write allow_anonymous = true (--allow-anonymous) to let everybody in"
)


def refuse_open(config: Config, file: str | None) -> None:
    """Listeners that are open to the world by an oversight are what `broker serve` does not take. file: that names them, if one does. ConfigError."""
    from broker.hub import check_open

    try:
        check_open(config.listeners, config, None, _WITHOUT_A_FILE if file is None else _IN_A_FILE)
    except ConfigError as error:
        raise ConfigError(error.problems, file or "config") from None


def problem_lines(error: ConfigError) -> list[str]:
    """One line a mistake: file, key, what was expected. What the command line or the environment said has no file."""
    source = "" if error.source in ("config", "listeners") else f"{error.source}: "
    return [f"{source}{key}: {expected}" if key else f"{source}{expected}" for key, expected in error.problems]
