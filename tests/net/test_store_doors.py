"""A broker with a store, by every door that a client may come in by: nothing is acknowledged before it is written, and all of it is there after
a crash. What holds of a stream in memory (`test_store.py`) is to hold where a layer of TLS or WebSocket has bytes and tasks of its own.
"""

from __future__ import annotations

import copy
import ssl
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest
import scramp  # type: ignore[import-untyped]
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.auth.hashes import hash_password
from broker.config import Config
from broker.hub import Broker
from broker.net import websocket
from broker.net.committer import CHANGES_COUNT_MAX
from broker.net.dial import dial, parse_url
from broker.net.listener import Listener
from broker.net.tls import TlsFiles
from broker.reasons import ReasonCode
from broker.wire.packets import (
    Auth,
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
    WillMessage,
)
from tests.net.disk import LASTING, answer, brief, lasting, opened, silent
from tests.net.mqtt import Client
from tests.net.test_scram import data_of, properties

AUTHORITY = trustme.CA()
TRUST = ssl.create_default_context()
AUTHORITY.configure_trust(TRUST)


class Door:
    """A listener, and clients that come in by it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.secure = "TLS" in name
        self.web = "WebSocket" in name
        self.unix = str(folder / "door.sock") if "Unix" in name else None
        self.files: TlsFiles | None = None
        if self.secure:
            pem = folder / "both.pem"
            AUTHORITY.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
            self.files = TlsFiles(certificate=str(pem), key=str(pem))

    def listener(self, mount_point: str = "") -> Listener:
        where = Listener(port=0) if self.unix is None else Listener(unix=self.unix)
        return msgspec.structs.replace(where, tls=self.files, protocol="websocket" if self.web else "mqtt", mount_point=mount_point)

    async def client(self, hub: Broker, nursery: trio.Nursery) -> Client:
        stream: trio.abc.Stream
        if self.unix is None:
            stream = await dial(parse_url(hub.urls[0]), tls=TRUST if self.secure else None, keeper=nursery)
        else:
            stream = await trio.open_unix_socket(self.unix)
            stream = await websocket.upgrade(nursery, stream, "localhost", "/mqtt") if self.web else stream
        nursery.start_soon(held, stream)
        return Client(stream)


async def held(stream: trio.abc.Stream) -> None:
    """Until the test is over."""
    try:
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(stream)


DOORS = ["TCP", "TLS", "WebSocket", "WebSocket by TLS"]
if sys.platform != "win32":
    DOORS += ["Unix", "WebSocket by Unix"]


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Door:
    return Door(request.param, tmp_path)


@pytest.mark.parametrize("mount_point", ["", "factory1/"])
async def test_nothing_is_acknowledged_before_it_is_written_and_all_is_there_after_a_crash(
    door: Door, mount_point: str, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    listeners = [door.listener(mount_point)]
    async with opened(monkeypatch, listeners=listeners) as (disk, hub, nursery):
        client = await door.client(hub, nursery)
        will = WillMessage("gone", b"w", 1, True)
        assert isinstance(await answer(disk, client, Connect("a", clean_start=False, will=will, properties=LASTING)), ConnAck)
        assert isinstance(await answer(disk, client, Subscribe(1, (SubscriptionRequest("mine", 2),))), SubAck)
        assert isinstance(await answer(disk, client, Publish("retained", b"r", 1, retain=True, packet_id=2)), PubAck)
        assert isinstance(await answer(disk, client, Publish("nobody", b"2", 2, packet_id=3)), PubRec)
        message = await answer(disk, client, Publish("mine", b"m", 2, packet_id=4))
        assert isinstance(message, Publish)
        assert isinstance(await client.receive(), PubRec)
        shelf = copy.deepcopy(disk.shelf)  # now it crashes
    assert [row.topic for row in shelf.retained] == [f"{mount_point}retained"]
    assert [row.filter for row in shelf.subscriptions] == [f"{mount_point}mine"]
    async with opened(monkeypatch, listeners=listeners, shelf=shelf) as (disk, hub, nursery):
        client = await door.client(hub, nursery)
        connack = await answer(disk, client, Connect("a", clean_start=False, properties=LASTING))
        assert isinstance(connack, ConnAck)
        assert connack.session_present
        assert await client.receive() == Publish("mine", b"m", 2, dup=True, packet_id=message.packet_id)
        assert isinstance(await answer(disk, client, PubRec(message.packet_id)), PubRel)
        await client.send(PubComp(message.packet_id), PubRel(3), PubRel(4))
        assert [await client.receive(), await client.receive()] == [PubComp(3), PubComp(4)]
        await client.send(Publish("mine", b"again", 1, packet_id=5))
        again = await client.receive()
        assert isinstance(again, Publish)
        assert again.payload == b"again"
        assert isinstance(await client.receive(), PubAck)
        await client.send(Subscribe(6, (SubscriptionRequest("+", 0),)))
        assert isinstance(await client.receive(), SubAck)
        retained = {await content_of(client), await content_of(client)}
        assert retained == {("retained", b"r"), ("gone", b"w")}  # the Will's client was gone when the broker was


async def content_of(client: Client) -> tuple[str, bytes]:
    packet = await client.receive()
    assert isinstance(packet, Publish)
    return packet.topic, packet.payload


async def test_who_says_all_at_once_and_leaves_is_acknowledged_after_the_disk(
    door: Door, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async with opened(monkeypatch, listeners=[door.listener()]) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        client = await door.client(hub, nursery)
        messages = [Publish("kept", b"%d" % number, 1, packet_id=number) for number in (1, 2)]
        assert isinstance(await answer(disk, client, Connect("a", properties=LASTING), *messages, Disconnect()), ConnAck)
        assert [await client.receive(), await client.receive()] == [PubAck(1), PubAck(2)]
        assert await client.receive() is None
        assert disk.shelf.messages_count == 2


async def test_who_has_much_to_say_waits_for_the_disk_and_nobody_else(door: Door, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch, listeners=[door.listener()], queue_count_max=100_000, receive_maximum=65_535) as (disk, hub, nursery):
        away = await lasting(hub, nursery, "away", "kept")
        await away.stream.aclose()
        talker = await door.client(hub, nursery)
        await talker.connect("talker")
        listener = await brief(hub, nursery, "listener", "chat")
        loud = await door.client(hub, nursery)
        await loud.connect("loud")
        await wait_all_tasks_blocked(0.005)
        disk.hold()
        count = 8 * CHANGES_COUNT_MAX

        async def say() -> None:
            for first in range(1, count, 64):
                await loud.send(*[Publish("kept", b"x" * 300, 1, packet_id=number) for number in range(first, first + 64)])

        nursery.start_soon(say)
        await disk.wait_begun()
        await wait_all_tasks_blocked(0.02)
        assert CHANGES_COUNT_MAX < hub._engine.changes_count < 2 * CHANGES_COUNT_MAX
        await talker.send(Publish("chat", b"1"), PingReq())
        assert await talker.receive() == PingResp()
        assert isinstance(await listener.receive(), Publish)
        await silent(loud)
        disk.release()
        for number in range(1, count + 1):
            assert await loud.receive() == PubAck(number)
        assert disk.shelf.messages_count == count


async def test_a_full_socket_and_a_disk_that_is_waited_for(door: Door, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """More than the system's buffers hold lies before what is not on disk. What is half sent then goes on where it stopped."""
    async with opened(monkeypatch, listeners=[door.listener()], outbox_bytes_high=2**27, outbox_bytes_max=2**27) as (disk, hub, nursery):
        client = await door.client(hub, nursery)
        await client.send(Connect("a", clean_start=False, properties=LASTING))
        assert isinstance(await client.receive(), ConnAck)
        await client.subscribe("#", 1)
        await wait_all_tasks_blocked(0.005)
        large = 0
        while large < 4 or not hub._server.writing:
            await hub.publish("t", b"%d" % large * 450_000)
            await wait_all_tasks_blocked()
            large += 1
            assert large < 100
        disk.hold()
        nursery.start_soon(partial(hub.publish, "t", b"last", qos=1))
        await disk.wait_begun()
        came: list[bytes] = []

        async def read() -> None:
            while b"last" not in came:
                message = await client.receive()
                assert isinstance(message, Publish)
                came.append(message.payload)

        async with trio.open_nursery() as reading:
            reading.start_soon(read)
            await wait_all_tasks_blocked(0.02)
            assert b"last" not in came
            disk.release()
        assert came == [*(b"%d" % number * 450_000 for number in range(large)), b"last"]


async def test_who_proves_a_password_is_in_after_the_disk_and_is_the_same_after_a_crash(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"ann:{hash_password(b'geheim', 'scram-sha-256', 4096).text}\n")
    (tmp_path / "acl").write_text("user ann\ntopic factory1/mine\n")
    config = Config(
        listeners=(door.listener("factory1/"),), password_file=str(passwords), acl_file=str(tmp_path / "acl"), sys_interval_s=0, shutdown_grace_s=0
    )

    async def come_in(client: Client) -> Auth:
        """Up to what is still to be shown."""
        theirs = scramp.ScramClient(["SCRAM-SHA-256"], "ann", "geheim")
        first = properties(theirs.get_client_first())
        asked = Properties(
            session_expiry_interval=3600, authentication_method=first.authentication_method, authentication_data=first.authentication_data
        )
        await client.send(Connect("a", 5, False, properties=asked))
        theirs.set_server_first(data_of(await client.receive()))
        return Auth(ReasonCode.CONTINUE_AUTHENTICATION, properties(theirs.get_client_final()))

    async with opened(monkeypatch, config) as (disk, hub, nursery):
        client = await door.client(hub, nursery)
        assert isinstance(await answer(disk, client, await come_in(client)), ConnAck)
        assert isinstance(await answer(disk, client, Subscribe(1, (SubscriptionRequest("mine", 1),))), SubAck)
        assert isinstance(await answer(disk, client, Publish("mine", b"m", 1, packet_id=2)), Publish)
        assert isinstance(await client.receive(), PubAck)
        shelf = copy.deepcopy(disk.shelf)
    assert [(row.client_id, row.username, row.mount_point) for row in shelf.sessions] == [("a", "ann", "factory1/")]
    async with opened(monkeypatch, config, shelf=shelf) as (disk, hub, nursery):
        client = await door.client(hub, nursery)
        connack = await answer(disk, client, await come_in(client))
        assert isinstance(connack, ConnAck)
        assert connack.session_present
        message = await client.receive()
        assert isinstance(message, Publish)
        assert (message.topic, message.payload, message.dup) == ("mine", b"m", True)
