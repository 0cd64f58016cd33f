"""`broker sub`: the options of mosquitto_sub. What it does is in `printing`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click

from broker.cli import formatting, values
from broker.cli.options import SHOWN, WHAT, ToolCommand, connection_options, option
from broker.cli.settings import Connection, connection_of
from broker.wire.packets import Properties

FORMAT_OPTIONS: Final = (
    option("-v", "--verbose", section=SHOWN, is_flag=True, help="The topic before the payload."),
    option(
        "-F", "--format", "layout", section=SHOWN, metavar="FORMAT",
        help="Mosquitto's format: %t topic, %p payload, %x in hexadecimal, %l its length, %q QoS, %r retained, %m packet id, %j JSON, "
             "%J JSON with a JSON payload, %I and %U time, %C %D %E %F %P %R %S properties; @ and a letter as strftime; \\n \\t \\e \\0.",
    ),
    option("--json", section=SHOWN, is_flag=True,
           help="The same as -F %j: one JSON object a message; payload_base64 where the payload is not UTF-8."),
    option("--pretty", section=SHOWN, is_flag=True, help="JSON over several lines."),
    option("-N", "no_newline", section=SHOWN, is_flag=True, help="No end of line after a message."),
)  # fmt: skip


@dataclass(frozen=True)
class Printed:
    """render(message, Unix time in ns) gives its bytes. Without a format, Mosquitto prints nothing for an empty payload unless -v without -N."""

    render: Callable[[formatting.Printable, int], bytes]
    end: bytes
    skip_empty: bool


@dataclass(frozen=True)
class Listening:
    """What is received, and how it is printed."""

    filters: tuple[str, ...]
    unsubscribe: tuple[str, ...]
    filter_out: tuple[str, ...]
    qos: int
    count_max: int | None
    exit_after_subscribe: bool
    no_retained: bool
    retained_only: bool
    remove_retained: bool
    retain_as_published: bool
    percentage: float
    printed: Printed
    subscribe_properties: Properties
    unsubscribe_properties: Properties


@click.command(
    cls=ToolCommand,
    context_settings={"help_option_names": ["--help"], "max_content_width": 110},
    help="Print the messages of an MQTT broker (as mosquitto_sub).",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 27 the time of -W ran out, else the reason code with which the broker refused.",
    short_help="Print messages",
)
@option(
    "-t",
    "--topic",
    "topics",
    section=WHAT,
    type=values.checked_filter,
    multiple=True,
    metavar="FILTER",
    help="Subscribe to this Topic Filter; may be repeated.",
)
@option(
    "-T",
    "--filter-out",
    section=WHAT,
    type=values.checked_filter,
    multiple=True,
    metavar="FILTER",
    help="Do not print topics that match; may be repeated.",
)
@option(
    "-U",
    "--unsubscribe",
    section=WHAT,
    type=values.checked_filter,
    multiple=True,
    metavar="FILTER",
    help="End this subscription of a kept session (-c); may be repeated.",
)
@option("-q", "--qos", section=WHAT, type=values.qos, default=0, metavar="QOS", help="The highest QoS wanted.  [default: 0]")
@option("-C", "count_max", section=WHAT, type=values.count, metavar="COUNT", help="Exit after so many messages.")
@option("-E", "exit_after_subscribe", section=WHAT, is_flag=True, help="Exit when the subscriptions are acknowledged.")
@option("-R", "no_retained", section=WHAT, is_flag=True, help="Do not print retained (stale) messages.")
@option("--retained-only", section=WHAT, is_flag=True, help="Print retained messages only, and exit at the first other one.")
@option("--remove-retained", section=WHAT, is_flag=True, help="Make the broker forget the retained messages that come (except those of -T).")
@option("--retain-as-published", section=WHAT, is_flag=True, help="Show the retain flag as it was published.")
@option("--random-filter", section=WHAT, type=values.percent, default=100.0, metavar="PERCENT", help="Print only so many of a hundred, by chance.")
@FORMAT_OPTIONS[0]
@FORMAT_OPTIONS[1]
@FORMAT_OPTIONS[2]
@FORMAT_OPTIONS[3]
@FORMAT_OPTIONS[4]
@connection_options
def command(**params: Any) -> int:
    connection = connection_of(params)
    listening = listening_of(params, connection)
    from broker.cli.printing import listen

    return listen(connection, listening)


def listening_of(params: dict[str, Any], connection: Connection) -> Listening:
    """The subscription's options, checked. Raises click.UsageError."""
    filters = list(params["topics"])
    if connection.url_topic is not None:
        filters.append(values.checked_filter(connection.url_topic, option="-L"))
    if not filters and not params["unsubscribe"]:
        raise click.UsageError("a topic is missing (-t to subscribe, -U to unsubscribe)")
    if params["no_retained"] and params["retained_only"]:
        raise click.UsageError("-R and --retained-only together leave nothing to print")
    if params["retain_as_published"] and connection.version != "5.0":
        raise click.UsageError(f"--retain-as-published needs MQTT 5.0, and -V chose {connection.version}")
    subscribe = connection.properties.get("subscribe", Properties())
    return Listening(
        filters=tuple(dict.fromkeys(filters)),
        unsubscribe=tuple(dict.fromkeys(params["unsubscribe"])),
        filter_out=params["filter_out"],
        qos=params["qos"],
        count_max=params["count_max"],
        exit_after_subscribe=params["exit_after_subscribe"],
        no_retained=params["no_retained"],
        retained_only=params["retained_only"],
        remove_retained=params["remove_retained"],
        retain_as_published=params["retain_as_published"],
        percentage=params["random_filter"],
        printed=printed_of(params, show_identifiers=bool(subscribe.subscription_identifiers)),
        subscribe_properties=subscribe,
        unsubscribe_properties=connection.properties.get("unsubscribe", Properties()),
    )


def printed_of(params: dict[str, Any], *, show_identifiers: bool) -> Printed:
    """-v, -F, --json, --pretty and -N. Raises click.UsageError.

    `show_identifiers`: our client gives each subscription an identifier of its own; only one that was asked for (-D) is anybody's business.
    """
    layout = params["layout"]
    if params["json"]:
        if layout is not None:
            raise click.UsageError("-F and --json both say what is printed; give one of them")
        layout = "%j"
    end = b"" if params["no_newline"] else b"\n"
    if layout is not None:
        try:
            render = formatting.compile_format(layout, pretty=params["pretty"], show_identifiers=show_identifiers)
        except formatting.FormatFault as fault:
            raise click.UsageError(f"-F: {values.printable(fault)}") from None
        return Printed(render, end, skip_empty=False)
    if params["pretty"]:
        raise click.UsageError("--pretty is for JSON: it needs --json, or %j or %J in -F")
    if params["verbose"]:
        return Printed(formatting.verbose, end, skip_empty=not end)
    return Printed(formatting.payload_only, end, skip_empty=True)
