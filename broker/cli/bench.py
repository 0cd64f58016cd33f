"""`broker bench`: the options of a load. What it does is in `broker.bench`; what is shown while it runs in `benching`."""

from __future__ import annotations

import secrets
from typing import Any, Final

import click

from broker.bench.frames import STAMP_BYTES
from broker.bench.plan import Plan
from broker.cli import values
from broker.cli.options import SHOWN, WHAT, ToolCommand, connection_options, option
from broker.cli.settings import SCRAM, Connection, connection_of
from broker.wire.packets import MQTT_5, MQTT_31, MQTT_311, Properties

VERSIONS: Final = {"5.0": MQTT_5, "3.1.1": MQTT_311, "3.1": MQTT_31}
NOT_HERE: Final = {
    "client_id": None, "keep_session": False, "session_expiry": None, "max_inflight": None, "debug": 0, "progress": False,
    "will_topic": None, "will_payload": None, "will_qos": None, "will_retain": False,
}  # fmt: skip
"""Shared options that mean nothing for a load, and what they are then."""
PAYLOAD_BYTES_MAX: Final = 16_777_216
CONNECTIONS_COUNT_MAX: Final = 60_000

connections_count: Final = values.whole(0, CONNECTIONS_COUNT_MAX)
shape_count: Final = values.whole(1, CONNECTIONS_COUNT_MAX)


@click.command(
    cls=ToolCommand,
    context_settings={"help_option_names": ["--help"], "max_content_width": 110},
    help="""Put load on an MQTT broker, any, and say what became of each message: how many a second, how late, and whether any was lost, doubled
or out of order. Every payload carries its number and the time; publisher p sends to topic p mod T, subscriber s takes topic s mod T.

One process of Python makes the load. On one core it can publish and check about 1 to 5 million messages a second of 64 bytes where a broker
sends many of them at a time, and some 100,000 where each comes by itself; what is measured near that is this program. It says so when
it used up its core. Give the broker another core, and compare figures of one machine and one moment only.""",
    epilog="Exit codes: 0 done, 1 failed, or something that MQTT promises was not kept (lost at QoS 1 or 2, doubled at QoS 2, out of order), "
    "2 wrong usage, 27 the time of -W ran out, 130 or 143 SIGINT or SIGTERM cut it short, else the reason code with which the broker refused. "
    "A run that is cut short, by a signal, by -W or because the broker has gone, gives the figures up to there and says so.",
    short_help="Measure a broker",
)
@option("--pairs", section=WHAT, type=shape_count, metavar="N", help="N publishers, each with a topic and a subscriber of its own.  [default: 1]")
@option("--fan-out", section=WHAT, type=shape_count, metavar="N", help="One publisher, N subscribers, one topic.")
@option("--fan-in", section=WHAT, type=shape_count, metavar="N", help="N publishers, one subscriber, one topic.")
@option("--publishers", section=WHAT, type=connections_count, metavar="N", help="Any other shape: so many publishers,")
@option("--subscribers", section=WHAT, type=connections_count, metavar="N", help="subscribers")
@option("--topics", section=WHAT, type=shape_count, metavar="N", help="and topics.  [default: 1 each]")
@option(
    "-t",
    "--topic",
    section=WHAT,
    type=values.checked_topic,
    metavar="TOPIC",
    help="Topics are this, a slash and a number.  [default: bench/ and something random]",
)
@option("-q", "--qos", section=WHAT, type=values.qos, default=0, metavar="QOS", help="Of publishing and of subscribing.  [default: 0]")
@option(
    "-s",
    "--size",
    section=WHAT,
    type=values.whole(STAMP_BYTES, PAYLOAD_BYTES_MAX),
    default=64,
    metavar="BYTES",
    help=f"Payload, {STAMP_BYTES} at least.  [default: 64]",
)
@option(
    "-r",
    "--rate",
    section=WHAT,
    type=values.rate,
    metavar="PER_SECOND",
    help="Messages a second, of all publishers together, on schedule whatever the broker does; late is counted from the schedule.  "
    "[default: as fast as -w allows]",
)
@option(
    "-w",
    "--window",
    section=WHAT,
    type=values.whole(1, 1_000_000),
    default=1000,
    metavar="COUNT",
    help="Messages of each publisher under way at once: not yet with every subscriber, not yet acknowledged. 1 measures round trips.  "
    "[default: 1000]",
)
@option("-n", "--count", section=WHAT, type=values.count, metavar="COUNT", help="Messages of each publisher, instead of a time.")
@option("--time", "duration", section=WHAT, type=values.seconds, metavar="SECONDS", help="Publish for so long.  [default: 5]")
@option(
    "--warm-up",
    section=WHAT,
    type=values.seconds_or_none,
    metavar="SECONDS",
    help="Publish for so long before anything is measured.  [default: 1; with -n 0]",
)
@option(
    "--drain",
    section=WHAT,
    type=values.seconds,
    default=2.0,
    metavar="SECONDS",
    help="What has not come when nothing has come for so long is lost.  [default: 2]",
)
@option("--json", "as_json", section=SHOWN, is_flag=True, help="The figures as one JSON object on stdout.")
@connection_options
def command(**params: Any) -> int:
    connection = connection_of({**NOT_HERE, **params})
    plan = plan_of(params, connection)
    from broker.cli.benching import bench

    return bench(connection, plan, as_json=params["as_json"])


command.params = [parameter for parameter in command.params if parameter.name not in NOT_HERE]


def plan_of(params: dict[str, Any], connection: Connection) -> Plan:
    """The load's options, checked. Raises click.UsageError."""
    publishers, subscribers, topics = shape_of(params)
    if params["count"] is not None and params["duration"] is not None:
        raise click.UsageError("-n and --time both say when to end; give one of them")
    topic = params["topic"] or connection.url_topic or f"bench/{secrets.token_hex(4)}"
    if params["topic"] is not None and connection.url_topic is not None:
        raise click.UsageError("-t and -L both name a topic; give one of them")
    warmup = params["warm_up"]
    return Plan(
        publishers_count=publishers,
        subscribers_count=subscribers,
        topics_count=topics,
        topic=values.checked_topic(topic, option="-L"),
        qos=params["qos"],
        payload_bytes=params["size"],
        version=VERSIONS[connection.version],
        rate=params["rate"],
        window=params["window"],
        count=params["count"],
        duration_s=params["duration"] or 5.0,
        warmup_s=warmup if warmup is not None else 0.0 if params["count"] is not None else 1.0,
        drain_s=params["drain"],
        client_id=connection.client_id if params["id_prefix"] is not None else "",
        username=None if connection.auth_method == SCRAM else connection.username,
        password=None if connection.password is None or connection.auth_method is not None else connection.password.newest(),
        keep_alive_s=connection.keep_alive_s,
        connect_properties=connection.properties.get("connect", Properties()),
        publish_properties=connection.properties.get("publish", Properties()),
    )


def shape_of(params: dict[str, Any]) -> tuple[int, int, int]:
    """(publishers, subscribers, topics). Raises click.UsageError."""
    shapes = [name for name in ("pairs", "fan_out", "fan_in") if params[name] is not None]
    numbers = [name for name in ("publishers", "subscribers", "topics") if params[name] is not None]
    if len(shapes) > 1 or (shapes and numbers):
        first, second = (f"--{name.replace('_', '-')}" for name in (shapes + numbers)[:2])
        raise click.UsageError(f"{first} and {second} both give the shape; give one of --pairs, --fan-out, --fan-in, or the numbers")
    if params["pairs"] is not None:
        return params["pairs"], params["pairs"], params["pairs"]
    if params["fan_out"] is not None:
        return 1, params["fan_out"], 1
    if params["fan_in"] is not None:
        return params["fan_in"], 1, 1
    publishers, subscribers, topics = (1 if params[name] is None else params[name] for name in ("publishers", "subscribers", "topics"))
    if publishers == 0:
        raise click.UsageError("--publishers 0 leaves nothing to measure")
    return publishers, subscribers, topics
