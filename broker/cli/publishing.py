"""What `broker pub` does once its options are known."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import trio

from broker.cli.connecting import open_connection
from broker.cli.progress import Meter
from broker.cli.pub import PAYLOAD_BYTES_MAX, Publication
from broker.cli.running import DONE, Failure, run_tool, timed_out
from broker.cli.settings import Connection
from broker.client import Client

WINDOW_COUNT: Final = 1000
"""Lines under way, unless --max-inflight says another number; the broker's Receive Maximum counts besides."""
_CHUNK_BYTES: Final = 65_536


def publish(connection: Connection, publication: Publication) -> int:
    """Returns the exit code."""
    return run_tool(partial(_publish, connection, publication), quiet=connection.quiet)


async def _publish(connection: Connection, publication: Publication) -> int:
    streams = publication.payload is None
    total = None if streams else publication.repeat_count
    async with open_connection(connection, stay=streams) as client:
        with trio.move_on_after(connection.timeout_s) as scope, Meter("published", shown=connection.progress, total=total) as meter:
            if streams:
                await _publish_lines(client, publication, connection.max_inflight or WINDOW_COUNT, meter)
            else:
                await _publish_repeatedly(client, publication, meter)
    return timed_out(connection.timeout_s, quiet=connection.quiet) if scope.cancelled_caught else DONE


def message_keywords(publication: Any) -> dict[str, Any]:
    """What publish() takes besides topic and payload, from the options."""
    given = publication.properties
    return {
        "qos": publication.qos,
        "retain": publication.retain,
        "content_type": given.content_type,
        "response_topic": given.response_topic,
        "correlation_data": given.correlation_data,
        "user_properties": given.user_properties,
        "message_expiry_s": given.message_expiry_interval,
        "payload_is_text": None if given.payload_format_indicator is None else given.payload_format_indicator == 1,
        "topic_alias": given.topic_alias,
    }


async def _publish_repeatedly(client: Client, publication: Publication, meter: Meter) -> None:
    payload = publication.payload or b""
    keywords = message_keywords(publication)
    for repetition in range(publication.repeat_count):
        if repetition and publication.repeat_delay_s:
            await trio.sleep(publication.repeat_delay_s)
        await client.publish(publication.topic, payload, **keywords)
        meter.count(len(payload))


async def _publish_lines(client: Client, publication: Publication, window_count: int, meter: Meter) -> None:
    """A line a message, in order, at most `window_count` of them under way. The first one refused ends it all."""
    keywords = message_keywords(publication)
    async with client.pipeline(count_max=window_count) as pipeline, aclosing(_lines()) as lines:
        async for line in lines:
            await pipeline.publish(publication.topic, line, **keywords)
            meter.count(len(line))


def _reader(descriptor: int) -> Callable[[int], bytes]:
    if sys.platform == "win32":  # what is typed at a console comes as UTF-8 from a file of Python's only
        return open(descriptor, "rb", buffering=0, closefd=False).read
    return partial(os.read, descriptor)


async def _lines() -> AsyncGenerator[bytes]:
    """stdin, line by line as it comes, without line ends; what stands after the last one is a line too."""
    read = _reader(sys.stdin.fileno())
    held: list[bytes] = []
    held_bytes = 0
    while chunk := await trio.to_thread.run_sync(read, _CHUNK_BYTES, abandon_on_cancel=True):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            whole_line = b"".join([*held, line]) if held else line
            yield whole_line.removesuffix(b"\r") if sys.platform == "win32" else whole_line
            held.clear()
            held_bytes = 0
        if rest:
            held.append(rest)
            held_bytes += len(rest)
        if held_bytes > PAYLOAD_BYTES_MAX:
            raise Failure(f"a line of stdin is longer than {PAYLOAD_BYTES_MAX:,} bytes, the most that an MQTT packet holds")
    if held:
        yield b"".join(held)
