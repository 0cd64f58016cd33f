"""What `broker rr` does once its options are known."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import trio

from broker.cli.connecting import open_connection
from broker.cli.output import Output
from broker.cli.printing import show
from broker.cli.publishing import message_keywords
from broker.cli.rr import Question
from broker.cli.running import DONE, run_tool, timed_out
from broker.cli.settings import Connection
from broker.client import Client, Message
from broker.errors import PublishRefused
from broker.reasons import ReasonCode


def ask(connection: Connection, question: Question) -> int:
    """Returns the exit code."""
    return run_tool(partial(_ask, connection, question), quiet=connection.quiet)


async def _ask(connection: Connection, question: Question) -> int:
    output = Output()
    async with open_connection(connection, stay=False) as client:
        with trio.move_on_after(connection.timeout_s) as scope:
            await show(output, question.printed, await _answer(client, connection, question), quiet=connection.quiet)
    return timed_out(connection.timeout_s, quiet=connection.quiet) if scope.cancelled_caught else DONE


async def _answer(client: Client, connection: Connection, question: Question) -> Message:
    response_topic = question.response_topic or f"reply/{secrets.token_hex(8)}"
    keywords = message_keywords(question)
    correlation: bytes | None = None
    if connection.version == "5.0":
        correlation = question.properties.correlation_data or secrets.token_hex(8).encode()
        keywords |= {"response_topic": response_topic, "correlation_data": correlation}
    subscribe: dict[str, Any] = {"qos": question.qos, "keep": not connection.clean_start}
    if question.subscribe_properties.user_properties:
        subscribe["user_properties"] = question.subscribe_properties.user_properties
    if question.subscribe_properties.subscription_identifiers:
        subscribe["identifier"] = question.subscribe_properties.subscription_identifiers[0]
    async with client.subscribe(response_topic, **subscribe) as answers:
        reason = await client.publish(question.topic, question.payload, **keywords)
        if reason == ReasonCode.NO_MATCHING_SUBSCRIBERS and question.topic != response_topic:
            # Nobody is there to answer, and the broker has said so: waiting would be for nothing.
            raise PublishRefused(question.topic, reason)
        async for message in answers:
            if question.no_retained and message.retain:
                continue
            # An answer to somebody else's question on the same topic carries other correlation data.
            if correlation is None or message.correlation_data in (None, correlation):
                return message
    raise AssertionError("a subscription ends only with its scope")
