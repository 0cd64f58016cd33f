"""Whoever says all in one go, CONNECT, PUBLISH, maybe DISCONNECT, and leaves before it is known who that is, is heard when it is let in."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from broker import Broker, Client, ConnectRequest, connect, open_broker
from broker.net.dial import dial, parse_url
from broker.net.listener import Listener
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import ConnAck, Connect, Disconnect, Packet, PubAck, Publish, WillMessage
from tests.net import mqtt
from tests.systems import unix_only

WORDS: list[Packet] = [Connect("sensor", 5, True, username="sensor"), Publish("t/0", b"1"), Publish("t/1", b"2", qos=1, packet_id=1)]
GOODBYE = Disconnect(ReasonCode.SUCCESS)


def encoded(*packets: Packet) -> bytes:
    return b"".join(encode(packet, 5) for packet in packets)


class Gate:
    """Asks who "sensor" is until it opens; whoever else comes is let in."""

    def __init__(self) -> None:
        self.opens = trio.Event()
        self.answer: str | None = "sensor"
        self.asked = 0
        self.asking = 0

    async def authenticate(self, request: ConnectRequest) -> str | None:
        if request.username != "sensor":
            return "somebody"
        self.asked += 1
        self.asking += 1
        try:
            await self.opens.wait()
        finally:
            self.asking -= 1
        return self.answer

    async def has_seen_the_end(self) -> None:
        while not self.asked:
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def served(gate: Gate, *listeners: Listener, **limits: Any) -> AsyncIterator[tuple[Broker, Client, trio.Nursery]]:
    """A broker, and a client that listens to all."""
    async with (
        open_broker(listeners=list(listeners), authenticate=gate.authenticate, **limits) as hub,
        connect(hub) as listening,
        trio.open_nursery() as nursery,
    ):
        yield hub, listening, nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(params=["mqtt", pytest.param("unix", marks=unix_only), "mqtts", "ws", "wss"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Listener:
    context = None
    if request.param in ("mqtts", "wss"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    if request.param == "unix":
        return Listener(unix=str(tmp_path / "socket"))
    return Listener(port=0, tls=context, protocol="websocket" if request.param in ("ws", "wss") else "mqtt")


async def dialled(hub: Broker, keeper: trio.Nursery, folder: Path) -> trio.abc.Stream:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem")) if (folder / "ca.pem").exists() else None
    return await dial(parse_url(hub.urls[0]), tls=context, keeper=keeper)


@pytest.mark.parametrize("says_goodbye", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
async def test_who_leaves_before_it_is_let_in_is_heard(gate: Gate, listener: Listener, at_once: bool, says_goodbye: bool, tmp_path: Path) -> None:
    async with served(gate, listener) as (hub, listening, nursery), listening.subscribe("t/+", qos=1) as messages:
        stream = await dialled(hub, nursery, tmp_path)
        await stream.send_all(encoded(*WORDS, GOODBYE) if says_goodbye else encoded(*WORDS))
        if at_once:  # over TLS 1.3 that is a reset: the tickets which it was sent are unread
            await trio.aclose_forcefully(stream)
        else:
            with trio.move_on_after(0.1):  # a WebSocket waits for a word of goodbye
                await stream.aclose()
        await gate.has_seen_the_end()
        assert len(hub.clients()) == 1
        gate.opens.set()
        with trio.fail_after(5):
            assert [(await messages.receive()).payload for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize("listener", ["mqtt", pytest.param("unix", marks=unix_only)], indirect=True)
async def test_who_goes_on_reading_is_answered_too(gate: Gate, listener: Listener, tmp_path: Path) -> None:
    async with served(gate, listener) as (hub, listening, nursery), listening.subscribe("t/+") as messages:
        stream = await dialled(hub, nursery, tmp_path)
        assert isinstance(stream, trio.SocketStream)
        async with stream:
            await stream.send_all(encoded(*WORDS))
            await stream.send_eof()
            await gate.has_seen_the_end()
            gate.opens.set()
            with trio.fail_after(5):
                assert [(await messages.receive()).payload for _ in range(2)] == [b"1", b"2"]
                client = mqtt.Client(stream)
                assert isinstance(await client.receive(), ConnAck)
                assert isinstance(await client.receive(), PubAck)
                assert await client.receive() is None


async def test_its_will_goes_out_when_it_said_no_goodbye(gate: Gate) -> None:
    hasty = Connect("sensor", 5, True, username="sensor", will=WillMessage("t/will", b"gone"))
    async with served(gate) as (hub, listening, nursery), listening.subscribe("t/+") as messages:
        await leaves(hub, nursery, hasty, *WORDS[1:])
        await gate.has_seen_the_end()
        gate.opens.set()
        with trio.fail_after(5):
            assert [(await messages.receive()).payload for _ in range(3)] == [b"1", b"2", b"gone"]


async def test_all_of_it_is_worked_off_turn_by_turn(gate: Gate) -> None:
    """The end is seen between two turns of what came ahead."""
    many = [Publish("t/0", b"%d" % number) for number in range(100)]
    async with served(gate, work_per_turn_max=4) as (hub, listening, nursery), listening.subscribe("t/+", buffer_count_max=200) as messages:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(hub.attach, theirs)
        await ours.send_all(encoded(WORDS[0], *many))
        await gate.has_seen_the_end()
        gate.opens.set()
        with trio.fail_after(5):
            assert (await messages.receive()).payload == b"0"
            await ours.send_eof()
            assert [(await messages.receive()).payload for _ in range(99)] == [b"%d" % number for number in range(1, 100)]


async def test_who_is_not_let_in_is_not_heard(gate: Gate) -> None:
    gate.answer = None
    async with served(gate) as (hub, listening, nursery), listening.subscribe("t/+") as messages:
        await leaves(hub, nursery, *WORDS)
        await gate.has_seen_the_end()
        gate.opens.set()
        await wait_all_tasks_blocked()
        await listening.publish("t/last", "last")
        with trio.fail_after(5):
            assert (await messages.receive()).payload == b"last"
        assert hub.statistics()["connections_open_count"] == 1


async def test_who_has_only_asked_to_come_in_is_asked_about_no_more(gate: Gate) -> None:
    """It has given up, and would come again: a herd of such must not be asked about twice."""
    async with served(gate) as (hub, _, nursery):
        await leaves(hub, nursery, WORDS[0])
        await gate.has_seen_the_end()
        assert (gate.asked, gate.asking) == (1, 0)
        assert hub.statistics()["connections_open_count"] == 1


async def test_the_time_and_the_number_of_those_that_left_are_bounded(gate: Gate, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.net.server.QUESTIONS_COUNT_MAX", 3)
    async with served(gate, connect_timeout_s=4) as (hub, _, nursery):
        for _ in range(20):
            await leaves(hub, nursery, *WORDS)
        await gate.has_seen_the_end()
        assert (gate.asked, gate.asking) == (3, 3)
        assert hub.statistics()["receiving_bytes"] >= 20 * len(encoded(*WORDS))
        await trio.sleep(4.5)
        assert (gate.asked, gate.asking) == (3, 0)
        found = hub.statistics()
        assert (found["receiving_bytes"], found["connections_open_count"]) == (0, 1)


async def test_the_brokers_end_does_not_wait_for_it(gate: Gate, autojump_clock: MockClock) -> None:
    async with served(gate) as (hub, _, nursery):
        await leaves(hub, nursery, *WORDS)
        await gate.has_seen_the_end()
        assert gate.asking == 1
        await hub.shutdown()
    assert gate.asking == 0
    assert trio.current_time() < 1


async def leaves(hub: Broker, nursery: trio.Nursery, *packets: Packet) -> None:
    """Says that over memory, and is gone."""
    ours, theirs = memory_stream_pair()
    nursery.start_soon(hub.attach, theirs)
    await ours.send_all(encoded(*packets))
    await ours.aclose()
