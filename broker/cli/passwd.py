"""`broker passwd`: makes and changes password files, with the flags of mosquitto_passwd."""

from __future__ import annotations

import os
import sys
from typing import get_args

import click

from broker.auth import hashes, passwords
from broker.cli import values
from broker.cli.running import DONE, FAILED, Failure, say, show
from broker.errors import ConfigError
from broker.words import strerror


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Set the password of USER in a password file (Mosquitto's format). It is asked for twice, without echo; a pipe gives it on one line.",
    epilog="A running broker takes the file over when it changes, or on SIGHUP.",
    short_help="Make and change password files",
)
@click.option("-c", "create", is_flag=True, help="Make a new file; one that is there is replaced.")
@click.option("-b", "batch", is_flag=True, help="Take PASSWORD from the command line, where others on this machine can read it.")
@click.option("-D", "delete", is_flag=True, help="Remove USER.")
@click.option("-U", "upgrade", is_flag=True, help="Hash the plain passwords in FILE (lines of user:password).")
@click.option(
    "-H",
    "scheme",
    type=click.Choice(get_args(hashes.Scheme)),
    default="sha512-pbkdf2",
    help="sha512 is for Mosquitto below 1.6; "
    "scram-sha-256 is for SCRAM over AUTH, and plain passwords too; argon2id needs an extra: pip install 'trio-mqtt-broker[argon2]'.",
)
@click.option(
    "-I",
    "iterations",
    type=values.whole(1, hashes.ITERATIONS_MAX),
    metavar="N",
    help=f"Of PBKDF2 ({hashes.ITERATIONS:,}; scram-sha-256: {hashes.SCRAM_ITERATIONS:,}, which clients do: small ones need fewer), "
    f"or passes of argon2id ({hashes.ARGON2_PASSES}).",
)
@click.argument("file", type=values.path)
@click.argument("user", required=False)
@click.argument("password", required=False)
def command(
    create: bool,
    batch: bool,
    delete: bool,
    upgrade: bool,
    scheme: hashes.Scheme,
    iterations: int | None,
    file: str,
    user: str | None,
    password: str | None,
) -> int:
    _check_words(create, batch, delete, upgrade, scheme, user, password)
    if os.path.exists(file) and not os.path.isfile(file):
        raise Failure(f"{file}: is not a file")  # and must not become one: /dev/null is everybody's
    try:
        if upgrade:
            return _upgrade(file, scheme, iterations)
        assert user is not None
        if delete:
            return _delete(file, user)
        if not create and not os.path.exists(file):
            raise Failure(f"{file}: there is no such file; -c makes one")
        data = _password(password, user)
        text = "" if create else passwords.read_text(file)
        changed, _ = passwords.with_user(text, user, hashes.hash_password(data, scheme, iterations))
        passwords.write_atomically(file, changed)
    except ConfigError as error:
        for place, expected in error.problems:
            say(f"{file}: {place}: {expected}" if place else f"{file}: {expected}")
        return FAILED
    except ValueError as error:
        raise Failure(f"{error}; nothing was changed") from None
    except OSError as error:
        raise Failure(f"{file}: cannot be written: {strerror(error)}") from None
    return DONE


def _check_words(create: bool, batch: bool, delete: bool, upgrade: bool, scheme: hashes.Scheme, user: str | None, password: str | None) -> None:
    if create + delete + upgrade > 1 or (batch and (delete or upgrade)):
        raise click.UsageError("-c, -D and -U exclude each other, and -b goes with none of -D and -U")
    if upgrade:
        if user is not None:
            raise click.UsageError("-U takes a file and nothing else")
        return
    if user is None:
        raise click.UsageError("Missing argument 'USER'.")
    if batch != (password is not None):
        raise click.UsageError("-b needs a password after the user" if batch else "a password on the command line needs -b")
    fault = passwords.name_fault(user) or (passwords.scram_name_fault(user) if scheme == "scram-sha-256" else None)
    if fault is not None and not delete:
        raise click.UsageError(fault)


def _upgrade(file: str, scheme: hashes.Scheme, iterations: int | None) -> int:
    text, count = passwords.with_plain_hashed(passwords.read_text(file), file, scheme, iterations)
    if count:
        passwords.write_atomically(file, text)
    show(f"{file}: {count} passwords hashed")
    return DONE


def _delete(file: str, user: str) -> int:
    text, found = passwords.with_user(passwords.read_text(file), user, None)
    if not found:
        raise Failure(f"{file}: there is no user {user!r}")
    passwords.write_atomically(file, text)
    return DONE


def _password(given: str | None, user: str) -> bytes:
    """From the command line, the terminal or a pipe. Empty ones are refused: they are mistakes."""
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        from getpass import getpass

        try:
            given = getpass(f"Password for {user}: ")
            if given and getpass("Again: ") != given:
                raise Failure("the two passwords are not the same; nothing was changed")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)  # the prompt's line
            raise Failure("no password was given; nothing was changed") from None
    if given is not None:
        data = given.encode("utf-8", "surrogateescape")
    else:
        data = b"" if sys.stdin is None else sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not data:
        raise Failure("the password is empty; nothing was changed")
    return data
