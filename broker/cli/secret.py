"""The password or token of a command line, and where it comes from: a word of it, a file, the environment. Nothing here shows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import click

from broker.cli import values
from broker.cli.running import Failure, os_error_line

BYTES_MAX: Final = 65_535  # of any binary field of a packet [MQTT5-1.5.6]


class Secret:
    """`option` gave it. What is in a file is read anew for each connection, since a token there is replaced before it ends."""

    def __init__(self, option: str, last: bytes, path: str | None = None) -> None:
        """path: of a file that is there for as long as the program runs. A pipe says it once only."""
        self.option = option
        self._last = last
        self._path = path

    def __repr__(self) -> str:
        return f"Secret({self.option})"

    def newest(self) -> bytes:
        """A file that cannot be read any more, or is empty while it is written anew, counts as unchanged."""
        if self._path is not None:
            with suppress(OSError, ValueError):
                self._last = first_line(self._path)
        return self._last

    def newest_text(self) -> str:
        """Raises Failure if it is none."""
        try:
            return self.newest().decode()
        except UnicodeDecodeError:
            raise Failure(f"{self.option}: what --auth shows must be UTF-8") from None


def secret_of(in_url: str | None, params: Mapping[str, Any]) -> Secret | None:
    """What -L, -P, --pw-file or --pw-env say. Raises click.UsageError."""
    given = {"-L": in_url, "-P": params["password"], "--pw-file": params["password_file"], "--pw-env": params["password_variable"]}
    options = [option for option, value in given.items() if value is not None]
    # The URL's password has always gone before -P's.
    if len(options) > 1 and options != ["-L", "-P"]:
        raise click.UsageError(f"{' and '.join(options)} all say the password; give one of them")
    if not options:
        return None
    option, value = options[0], given[options[0]]
    assert value is not None
    if option == "--pw-file":
        return Secret(option, _from_file(value), value if os.path.isfile(value) else None)
    data = _from_environment(value) if option == "--pw-env" else os.fsencode(value)
    if len(data) > BYTES_MAX:
        raise click.UsageError(f"{option}: the password is longer than {BYTES_MAX:,} bytes, the most that a packet holds")
    return Secret(option, data)


def _from_file(path: str) -> bytes:
    try:
        return first_line(path)
    except OSError as error:
        error.filename = path  # which reading it does not say
        raise click.UsageError(f"--pw-file: cannot read {values.printable(os_error_line(error))}") from error
    except ValueError as error:
        raise click.UsageError(f"--pw-file: {values.printable(path)}: {error}") from None


def _from_environment(name: str) -> bytes:
    value = os.environ.get(name, "")
    if not value:
        raise click.UsageError(f"--pw-env: there is no environment variable {values.printable(name)}, or it is empty")
    return os.fsencode(value)


def first_line(path: str) -> bytes:
    """Without its end. OSError, or ValueError where there is nothing, or too much for a packet."""
    with open(path, "rb") as file:
        line = file.readline(BYTES_MAX + 3).rstrip(b"\r\n")
    if not line:
        raise ValueError("its first line is empty, and should be the password")
    if len(line) > BYTES_MAX:
        raise ValueError(f"its first line is longer than {BYTES_MAX:,} bytes, the most that a packet holds")
    return line
