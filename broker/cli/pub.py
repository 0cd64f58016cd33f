"""`broker pub`: the options of mosquitto_pub, and where the payload comes from. What it does is in `publishing`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import click

from broker.cli import values
from broker.cli.options import WHAT, ToolCommand, connection_options, option
from broker.cli.running import os_error_line
from broker.cli.settings import Connection, connection_of
from broker.wire.packets import Properties

PAYLOAD_BYTES_MAX: Final = 268_435_455  # the longest Remaining Length [MQTT5-1.5.5-1]; longer payloads fit no packet

PAYLOAD_OPTIONS: Final = (
    option("-m", "--message", section=WHAT, metavar="TEXT", help="This text is the message."),
    option("-f", "--file", "file", section=WHAT, metavar="PATH", help="This file's content is the message."),
    option("-s", "--stdin-file", "whole_stdin", section=WHAT, is_flag=True, help="All of stdin is the message."),
    option("-n", "--null-message", section=WHAT, is_flag=True, help="The message is empty (with -r: forget the retained one)."),
)


@dataclass(frozen=True)
class Publication:
    """What is published: `payload`, or the lines of stdin if None."""

    topic: str
    payload: bytes | None
    qos: int
    retain: bool
    repeat_count: int
    repeat_delay_s: float
    properties: Properties


@click.command(
    cls=ToolCommand,
    context_settings={"help_option_names": ["--help"], "max_content_width": 110},
    help="Publish messages to an MQTT broker (as mosquitto_pub).",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 27 the time of -W ran out, else the reason code with which the broker refused.",
    short_help="Publish messages",
)
@option("-t", "--topic", section=WHAT, type=values.checked_topic, metavar="TOPIC", help="Where to publish.")
@PAYLOAD_OPTIONS[0]
@PAYLOAD_OPTIONS[1]
@option("-l", "--stdin-line", "lines", section=WHAT, is_flag=True, help="Each line of stdin is a message.")
@PAYLOAD_OPTIONS[2]
@PAYLOAD_OPTIONS[3]
@option("-q", "--qos", section=WHAT, type=values.qos, default=0, metavar="QOS", help="0 at most once, 1 at least once, 2 exactly once.  [default: 0]")
@option("-r", "--retain", section=WHAT, is_flag=True, help="The broker keeps it for those who subscribe later.")
@option("--repeat", section=WHAT, type=values.count, metavar="COUNT", help="Publish -m, -f, -n or -s so many times, one after the other.")
@option("--repeat-delay", section=WHAT, type=values.seconds_or_none, metavar="SECONDS", help="Wait so long before each repetition.  [default: 0]")
@connection_options
def command(**params: Any) -> int:
    connection = connection_of(params)
    publication = publication_of(params, connection)
    from broker.cli.publishing import publish

    return publish(connection, publication)


def publication_of(params: dict[str, Any], connection: Connection) -> Publication:
    """The publication's options, checked; reads -f and -s. Raises click.UsageError."""
    only_one_kind(params)
    if params["lines"] and params["repeat"] is not None:
        raise click.UsageError("--repeat goes with -m, -f, -n and -s; with -l each line is sent once")
    if params["repeat_delay"] is not None and params["repeat"] is None:
        raise click.UsageError("--repeat-delay needs --repeat")
    return Publication(
        topic=topic_of(params, connection),
        payload=None if params["lines"] else read_payload(params),
        qos=params["qos"],
        retain=params["retain"],
        repeat_count=params["repeat"] or 1,
        repeat_delay_s=params["repeat_delay"] or 0,
        properties=connection.properties.get("publish", Properties()),
    )


def topic_of(params: dict[str, Any], connection: Connection) -> str:
    """-t, or the path of -L."""
    if params["topic"] is not None and connection.url_topic is not None:
        raise click.UsageError("-t and -L both name a topic; give one of them")
    topic = params["topic"] or connection.url_topic
    if topic is None:
        raise click.UsageError("a topic is missing (-t)")
    return values.checked_topic(str(topic), option="-L")


_KINDS: Final = (("message", "-m"), ("file", "-f"), ("lines", "-l"), ("whole_stdin", "-s"), ("null_message", "-n"))


def only_one_kind(params: dict[str, Any]) -> None:
    kinds = [letter for name, letter in _KINDS if params.get(name) not in (None, False)]
    choice = ", ".join(letter for name, letter in _KINDS if name in params)
    if sys.stdin is None and (params.get("lines") or params["whole_stdin"]):
        raise click.UsageError(f"stdin is closed, and {kinds[0]} reads it")
    if not kinds:
        raise click.UsageError(f"a message is missing (one of {choice})")
    if len(kinds) > 1:
        raise click.UsageError(f"{' and '.join(kinds)} both give the message; give one of {choice}")


def read_payload(params: dict[str, Any]) -> bytes:
    """The one message of -m, -n, -f or -s, as bytes."""
    if params["message"] is not None:
        return os.fsencode(params["message"])
    if params["null_message"]:
        return b""
    if params["whole_stdin"]:
        return _bounded(sys.stdin.buffer.read(PAYLOAD_BYTES_MAX + 1), "stdin")
    try:
        with open(params["file"], "rb") as file:
            return _bounded(file.read(PAYLOAD_BYTES_MAX + 1), params["file"])
    except OSError as error:
        error.filename = params["file"]  # which reading it does not say
        hint = " (-s and -l read stdin)" if params["file"] == "-" else ""
        raise click.UsageError(f"-f: cannot read {values.printable(os_error_line(error))}{hint}") from error


def _bounded(payload: bytes, source: str) -> bytes:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise click.UsageError(f"{values.printable(source)} is longer than {PAYLOAD_BYTES_MAX:,} bytes, the most that an MQTT packet holds")
    return payload
