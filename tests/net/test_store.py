"""A broker with a store, at its rim: nobody is told anything that a crash could make untrue, and nobody else waits.

In virtual time; the disk is one that a test holds (`disk.py`), and what is "not sent" was not when every task waited for something.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.errors import StoreError
from broker.net.authentication import ConnectRequest
from broker.net.committer import CHANGES_COUNT_MAX, RETRY_S, UNAWAITED_COUNT_MAX, UNAWAITED_S
from broker.net.listener import Listener
from broker.net.tls import TlsFiles
from broker.opening import open_broker
from broker.wire.codec import encode
from broker.wire.packets import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    WillMessage,
)
from tests.net.disk import LASTING, answer, attached, brief, lasting, opened, silent
from tests.net.mqtt import Client

# ---- nothing is told too early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [5, 4])
async def test_nothing_that_lasts_is_acknowledged_before_it_is_on_disk(version: int, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        client = await attached(hub, nursery, version)
        came = Connect("a", version, clean_start=False, properties=LASTING if version == 5 else Properties())
        assert isinstance(await answer(disk, client, came), ConnAck)
        assert isinstance(await answer(disk, client, Subscribe(1, (SubscriptionRequest("mine", 2),))), SubAck)
        assert isinstance(await answer(disk, client, Publish("kept", b"1", 1, packet_id=2)), PubAck)
        assert isinstance(await answer(disk, client, Publish("kept", b"2", 2, packet_id=3)), PubRec)
        assert isinstance(await answer(disk, client, PubRel(3)), PubComp)
        assert isinstance(await answer(disk, client, Publish("nobody", b"2", 2, packet_id=4)), PubRec)  # that it has come is kept
        assert isinstance(await answer(disk, client, Publish("retained", b"3", 1, retain=True, packet_id=5)), PubAck)
        message = await answer(disk, client, Publish("mine", b"4", 2, packet_id=6))  # its own, and before its PUBREC
        assert isinstance(message, Publish)
        assert isinstance(await client.receive(), PubRec)
        assert isinstance(await answer(disk, client, PubRec(message.packet_id)), PubRel)
        assert isinstance(await answer(disk, client, PubComp(message.packet_id), PingReq()), PingResp)  # so that it is not repeated after a crash
        assert isinstance(await answer(disk, client, Unsubscribe(7, ("mine",))), UnsubAck)
    assert [row.topic for row in disk.shelf.retained] == ["retained"]
    assert {row.client_id for row in disk.shelf.sessions} == {"away", "a"}
    assert disk.shelf.messages_count == 2


async def test_a_will_is_on_disk_before_its_client_is_in(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await attached(hub, nursery)
        assert isinstance(await answer(disk, client, Connect("a", will=WillMessage("gone", b"a", 1, False))), ConnAck)
        assert [row.topic for row in disk.shelf.wills] == ["gone"]


async def test_no_message_comes_to_a_session_that_lasts_before_it_is_on_disk(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await lasting(hub, nursery, "a", "t")
        other = await brief(hub, nursery, "b")
        disk.hold()
        await other.send(Publish("t", b"1", 1, packet_id=1))
        await disk.wait_begun()
        await silent(client, other)
        disk.release()
        assert isinstance(await client.receive(), Publish)
        assert isinstance(await other.receive(), PubAck)


async def test_what_nobody_waits_for_is_written_a_moment_later_or_with_what_somebody_does(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await lasting(hub, nursery, "a", "t")
        other = await brief(hub, nursery, "b")
        await other.send(Publish("t", b"1", 1, packet_id=1))
        assert await other.receive() == PubAck(1)
        message = await client.receive()
        assert isinstance(message, Publish)
        await client.send(PubAck(message.packet_id))
        await wait_all_tasks_blocked(0.005)
        count = disk.writes_count
        mock_clock.jump(UNAWAITED_S * 0.9)
        await wait_all_tasks_blocked(0.005)
        assert disk.writes_count == count
        await other.send(Publish("t", b"2", 1, packet_id=2))
        assert await other.receive() == PubAck(2)
        message = await client.receive()
        assert isinstance(message, Publish)
        await wait_all_tasks_blocked(0.005)
        assert disk.writes_count == count + 1
        await client.send(PubAck(message.packet_id))
        await wait_all_tasks_blocked(0.005)
        assert disk.shelf.messages_count == 1
        mock_clock.jump(UNAWAITED_S)
        disk.hold()
        await disk.wait_begun()
        disk.release()
        while disk.shelf.messages_count:  # the thread takes as long as the machine lets it
            await wait_all_tasks_blocked(0.005)


async def test_much_that_nobody_waits_for_is_written_at_once(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await brief(hub, nursery, "b")
        disk.hold()
        await client.send(*[Publish(f"t/{number}", b"1", retain=True) for number in range(UNAWAITED_COUNT_MAX + 1)])
        await disk.wait_begun()


async def test_a_session_that_is_thrown_away_is_gone_before_its_client_is_in(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """Else it could be there again after a crash, though its client was told that it is not."""
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await lasting(hub, nursery, "a", "t")
        await client.stream.aclose()
        client = await attached(hub, nursery)
        assert isinstance(await answer(disk, client, Connect("a", clean_start=True)), ConnAck)
        assert not list(disk.shelf.sessions)


async def test_a_session_that_its_client_has_ended_is_gone_before_that_client_is_in_again(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await lasting(hub, nursery, "a", "t")
        await wait_all_tasks_blocked(0.005)
        disk.hold()
        await client.send(Disconnect(properties=Properties(session_expiry_interval=0)))
        await wait_all_tasks_blocked(0.005)
        mock_clock.jump(UNAWAITED_S)
        await disk.wait_begun()
        again, stranger = await attached(hub, nursery), await attached(hub, nursery)
        await again.send(Connect("a", clean_start=False))
        await stranger.connect("b")  # who had none does not wait
        await silent(again)
        disk.release()
        connack = await again.receive()
        assert isinstance(connack, ConnAck)
        assert not connack.session_present


async def test_who_is_asked_for_is_not_in_before_the_disk_either(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """What the answer leads to is told by another verb of the core."""
    asked = trio.Event()

    async def authenticate(request: ConnectRequest) -> str | None:
        await asked.wait()
        return "ann"

    async with opened(monkeypatch, authenticate=authenticate) as (disk, hub, nursery):
        client = await attached(hub, nursery)
        await client.send(Connect("a", properties=LASTING))
        await wait_all_tasks_blocked(0.005)
        disk.hold()
        asked.set()
        await disk.wait_begun()
        await silent(client)
        disk.release()
        assert isinstance(await client.receive(), ConnAck)


# ---- nobody else waits -------------------------------------------------------------------------------------------------


async def test_who_keeps_nothing_does_not_wait(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        held = await lasting(hub, nursery, "a", "kept")
        listener = await brief(hub, nursery, "listener", "#")
        talker = await brief(hub, nursery, "talker")
        disk.hold()
        await held.send(Publish("kept", b"1", 1, packet_id=1))
        await disk.wait_begun()
        assert isinstance(await listener.receive(), Publish)
        for number in range(3):
            await talker.send(Publish("chat", b"%d" % number), PingReq())
            assert await talker.receive() == PingResp()
            assert await listener.receive() == Publish("chat", b"%d" % number)
        late = await brief(hub, nursery, "late", "chat")
        await late.send(Publish("chat", b"1", 1, packet_id=1), Disconnect())
        assert isinstance(await listener.receive(), Publish)
        assert isinstance(await late.receive(), Publish)
        assert isinstance(await late.receive(), PubAck)
        assert await late.receive() is None
        await silent(held)


async def test_who_has_much_to_say_is_not_read_while_too_much_waits_and_then_goes_on(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch, queue_count_max=100_000, receive_maximum=65_535) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        listener = await brief(hub, nursery, "listener", "chat")
        talker = await brief(hub, nursery, "talker")
        loud = await attached(hub, nursery)
        await loud.connect("loud")
        await wait_all_tasks_blocked(0.005)
        disk.hold()
        count = 8 * CHANGES_COUNT_MAX
        payload = b"x" * 100
        sent = 0

        async def say() -> None:
            nonlocal sent
            for first in range(1, count, 64):
                await loud.send(*[Publish("kept", payload, 1, packet_id=number) for number in range(first, first + 64)])
                sent += 64

        nursery.start_soon(say)
        await disk.wait_begun()
        await wait_all_tasks_blocked(0.005)
        assert CHANGES_COUNT_MAX < hub._engine.changes_count < 2 * CHANGES_COUNT_MAX
        assert sent < 4 * CHANGES_COUNT_MAX  # what is beyond waits in the stream
        for _ in range(3):  # and nobody else is in its way
            await talker.send(Publish("chat", b"1"), PingReq())
            assert await talker.receive() == PingResp()
            assert isinstance(await listener.receive(), Publish)
        await silent(loud)
        disk.release()
        for number in range(1, count + 1):
            assert await loud.receive() == PubAck(number)
        assert disk.shelf.messages_count == count


async def test_who_is_not_read_for_the_disk_can_be_thrown_out_and_is_not_silent(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    limits: dict[str, Any] = {"queue_count_max": 100_000, "receive_maximum": 65_535}
    async with opened(monkeypatch, listeners=["mqtt://127.0.0.1:0"], **limits) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        loud = Client(await trio.open_tcp_stream("127.0.0.1", int(hub.urls[0].rpartition(":")[2])))
        await loud.send(Connect("loud", keep_alive_s=10))
        assert isinstance(await loud.receive(), ConnAck)
        await wait_all_tasks_blocked(0.005)
        disk.hold()

        async def say() -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await loud.send(*[Publish("kept", b"x" * 100, 1, packet_id=number) for number in range(1, 8 * CHANGES_COUNT_MAX)])

        nursery.start_soon(say)
        while hub._engine.changes_count <= CHANGES_COUNT_MAX:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(0.02)
        mock_clock.jump(60)
        await wait_all_tasks_blocked(0.005)
        assert {info.client_id for info in hub.clients()} == {"away", "loud"}
        hub.drop_clients()
        while len(hub.clients()) > 1:
            await trio.lowlevel.checkpoint()
        await trio.aclose_forcefully(loud.stream)


# ---- a disk that fails -------------------------------------------------------------------------------------------------


async def test_a_store_that_fails_is_tried_again_and_told_of_twice(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await lasting(hub, nursery, "a", "t")
        caplog.clear()
        disk.failures = math.inf
        disk.hold()
        await client.send(Publish("t", b"1", 1, packet_id=1))
        await disk.wait_begun()
        disk.release()
        await silent(client)
        disk.failures = 2
        mock_clock.autojump_threshold = 0.02
        assert isinstance(await client.receive(), Publish)
        assert isinstance(await client.receive(), PubAck)
        assert trio.current_time() >= 2 * RETRY_S
        mock_clock.autojump_threshold = math.inf
        assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
        failing, working = [record.getMessage() for record in caplog.records]
        assert failing.startswith("store some/store: its disk is full: make room there; until it can be written, nothing that")
        assert working == "the store can be written again"


async def test_clients_that_come_again_and_again_while_it_fails_take_no_more_memory(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        disk.hold()
        for _ in range(30):
            client = await attached(hub, nursery)
            await client.send(Connect("a", clean_start=True, properties=LASTING))
            await disk.wait_begun()
            await silent(client)
            await client.stream.aclose()
            await wait_all_tasks_blocked()
            mock_clock.jump(hub._server.limits.close_timeout_s)  # so long it might still read what it is to be told
            await wait_all_tasks_blocked()
        state = hub._engine.state
        assert state.journal is not None
        assert not state.gated
        assert len(state.journal._ended) <= 1
        assert len(state.journal._touched) <= 1
        assert len(state.journal.going) <= 1


# ---- clients that end, and come again ----------------------------------------------------------------------------------


async def test_who_says_all_at_once_and_leaves_is_acknowledged_after_the_disk(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        await wait_all_tasks_blocked(0.005)
        client = await attached(hub, nursery)
        disk.hold()
        messages = [Publish("kept", b"%d" % number, 1, packet_id=number) for number in (1, 2)]
        await client.send(Connect("a", properties=LASTING), *messages, Disconnect())
        assert isinstance(client.stream, trio.abc.HalfCloseableStream)
        await client.stream.send_eof()
        await disk.wait_begun()
        await silent(client)
        disk.release()
        assert isinstance(await client.receive(), ConnAck)
        assert [await client.receive(), await client.receive()] == [PubAck(1), PubAck(2)]
        assert await client.receive() is None


@pytest.mark.parametrize("goodbye", [True, False])
async def test_the_same_by_a_socket(goodbye: bool, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """Whose reading task is alone, and has what came with the connection from the accept."""
    async with opened(monkeypatch, listeners=["mqtt://127.0.0.1:0"]) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        await wait_all_tasks_blocked(0.005)
        disk.hold()
        with socket.create_connection(("127.0.0.1", int(hub.urls[0].rpartition(":")[2]))) as peer:
            peer.sendall(encode(Connect("a"), 5) + encode(Publish("kept", b"1", 1, packet_id=1), 5) + (encode(Disconnect(), 5) if goodbye else b""))
            peer.shutdown(socket.SHUT_WR)
            await disk.wait_begun()
            peer.setblocking(False)
            await wait_all_tasks_blocked(0.02)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            disk.release()
            client = Client(trio.SocketStream(trio.socket.from_stdlib_socket(peer)))
            assert isinstance(await client.receive(), ConnAck)
            assert await client.receive() == PubAck(1)
            assert await client.receive() is None


async def test_a_client_that_is_taken_over_waits_as_its_successor_does(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        old = await lasting(hub, nursery, "a", "kept")
        disk.hold()
        await old.send(Publish("other", b"1", 2, packet_id=5))
        await disk.wait_begun()
        new = await attached(hub, nursery)
        await new.send(Connect("a", clean_start=False, properties=LASTING), Publish("other", b"1", 2, packet_id=5, dup=True))
        await silent(old, new)
        disk.release()
        assert isinstance(await old.receive(), PubRec)
        assert isinstance(await old.receive(), Disconnect)
        assert await old.receive() is None
        connack = await new.receive()
        assert isinstance(connack, ConnAck)
        assert connack.session_present
        assert isinstance(await new.receive(), PubRec)
        assert [row.ids for row in disk.shelf.ids] == [b"\0\5"]


@pytest.mark.parametrize("thrown_out", [False, True])
async def test_a_full_socket_and_a_disk_that_is_waited_for(thrown_out: bool, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """Its writer leaves when it comes to what is not on disk, and what is goes out in order."""
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await attached(hub, nursery, buffer_bytes=1000)
        await client.send(Connect("a", clean_start=False, properties=LASTING))
        assert isinstance(await client.receive(), ConnAck)
        await client.subscribe("#", 1)
        for number in range(5):
            await hub.publish("t", b"%d" % number * 3000)
        await wait_all_tasks_blocked(0.005)
        assert hub._server.writing
        disk.hold()
        nursery.start_soon(partial(hub.publish, "t", b"last", qos=1))
        await disk.wait_begun()
        assert hub._server.writing
        if thrown_out:
            hub.disconnect("a")
        begun = b""
        while hub._server.writing:
            begun += await client.stream.receive_some()
            await wait_all_tasks_blocked()
        client.feed(begun)
        assert await client.receive() == Publish("t", b"0" * 3000)
        await silent(client)  # the second is half sent, and what is left of it waits too
        disk.release()
        for number in range(1, 5):
            assert await client.receive() == Publish("t", b"%d" % number * 3000)
        last = await client.receive()
        assert isinstance(last, Publish)
        assert last.payload == b"last"
        if thrown_out:
            assert isinstance(await client.receive(), Disconnect)
            assert await client.receive() is None


# ---- in the program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"qos": 1}, {"qos": 2}, {"retain": True}])
async def test_publish_returns_when_it_is_on_disk(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "t")
        await away.stream.aclose()
        await wait_all_tasks_blocked(0.005)
        done = trio.Event()

        async def publish() -> None:
            await hub.publish("t", b"1", **how)
            done.set()

        disk.hold()
        nursery.start_soon(publish)
        await disk.wait_begun()
        await wait_all_tasks_blocked(0.005)
        assert not done.is_set()
        await hub.publish("t", b"2")  # QoS 0 waits for nobody
        disk.release()
        await done.wait()
        assert disk.shelf.messages_count + len(list(disk.shelf.retained)) == 1


async def test_the_same_by_tls(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    files = TlsFiles(certificate=str(tmp_path / "both.pem"), key=str(tmp_path / "both.pem"))
    async with opened(monkeypatch, listeners=[Listener(port=0, tls=files)]) as (disk, hub, _):
        port = int(hub.urls[0].rpartition(":")[2])
        async with await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context) as stream:
            client = Client(stream)
            assert isinstance(await answer(disk, client, Connect("a", properties=LASTING)), ConnAck)
            assert isinstance(await answer(disk, client, Publish("t", b"1", 2, packet_id=1), Disconnect()), PubRec)
            assert await client.receive() is None


async def test_a_python_without_sqlite_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "broker.store.sqlite", None)
    with pytest.raises(StoreError, match="this Python was built without sqlite3"):
        async with open_broker(store=tmp_path / "broker.db"):
            pass
