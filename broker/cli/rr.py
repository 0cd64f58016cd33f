"""`broker rr`: the options of mosquitto_rr. What it does is in `asking`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from broker.cli import pub, sub, values
from broker.cli.options import WHAT, ToolCommand, connection_options, option
from broker.cli.settings import connection_of
from broker.wire.packets import Properties


@dataclass(frozen=True)
class Question:
    """What is asked, and where the answer is awaited (None: on a topic of our own making)."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    response_topic: str | None
    no_retained: bool
    printed: sub.Printed
    properties: Properties
    subscribe_properties: Properties


@click.command(
    cls=ToolCommand,
    context_settings={"help_option_names": ["--help"], "max_content_width": 110},
    help="Publish a request, and print the answer to it (as mosquitto_rr).",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 27 the time of -W ran out, 16 nobody subscribes to the topic (-q 1 or 2), else the "
    "reason code with which the broker refused.",
    short_help="Ask, and print the answer",
)
@option("-t", "--topic", section=WHAT, type=values.checked_topic, metavar="TOPIC", help="Where to ask.")
@option(
    "-e",
    "--response-topic",
    section=WHAT,
    type=values.checked_topic,
    metavar="TOPIC",
    help="Where the answer is awaited.  [default: reply/ and something random]",
)
@pub.PAYLOAD_OPTIONS[0]
@pub.PAYLOAD_OPTIONS[1]
@pub.PAYLOAD_OPTIONS[2]
@pub.PAYLOAD_OPTIONS[3]
@option(
    "-q", "--qos", section=WHAT, type=values.qos, default=0, metavar="QOS", help="QoS of the request, and the highest of the answer.  [default: 0]"
)
@option("-r", "--retain", section=WHAT, is_flag=True, help="The broker keeps the request for those who subscribe later.")
@option("-R", "no_retained", section=WHAT, is_flag=True, help="A retained (stale) message is no answer.")
@sub.FORMAT_OPTIONS[0]
@sub.FORMAT_OPTIONS[1]
@sub.FORMAT_OPTIONS[2]
@sub.FORMAT_OPTIONS[3]
@sub.FORMAT_OPTIONS[4]
@connection_options
def command(**params: Any) -> int:
    connection = connection_of(params)
    pub.only_one_kind(params)
    if params["response_topic"] is None and connection.version != "5.0":
        raise click.UsageError(f"-e is missing: MQTT {connection.version} cannot tell the other side where to answer, so both must know the topic")
    given = connection.properties.get("publish", Properties())
    if given.response_topic is not None:
        raise click.UsageError("-e is the response topic here, and -D publish response-topic another; give one of them")
    subscribe = connection.properties.get("subscribe", Properties())
    question = Question(
        topic=pub.topic_of(params, connection),
        payload=pub.read_payload(params),
        qos=params["qos"],
        retain=params["retain"],
        response_topic=params["response_topic"],
        no_retained=params["no_retained"],
        printed=sub.printed_of(params, show_identifiers=bool(subscribe.subscription_identifiers)),
        properties=given,
        subscribe_properties=subscribe,
    )
    from broker.cli.asking import ask

    return ask(connection, question)
