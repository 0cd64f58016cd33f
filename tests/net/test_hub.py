"""An open broker with the real engine: what its scope promises, however it ends, and what an embedder can ask of it."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.config import Config
from broker.core.message import ApplicationMessage
from broker.errors import BrokerError, ConfigError, InvalidTopic, ListenError
from broker.hub import Broker
from broker.net.authentication import ConnectRequest
from broker.net.listener import Listener
from broker.net.memory import memory_stream_pair
from broker.net.unix import HAS_UNIX
from broker.opening import open_broker, serve
from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, Packet, PingReq, PingResp, Publish, Subscribe, SubscriptionRequest
from tests.net.mqtt import Client


async def attached(hub: Broker, nursery: trio.Nursery, version: int = 5, peer: str = "in-process", buffer_bytes: int = 65_536) -> Client:
    ours, theirs = memory_stream_pair(buffer_bytes)

    async def run() -> None:
        await hub.attach(theirs, peer=peer)

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    return Client(ours, version)


async def dialled(hub: Broker, version: int = 5) -> Client:
    host, _, port = hub.urls[0].removeprefix("mqtt://").rpartition(":")
    return Client(await trio.open_tcp_stream(host.strip("[]"), int(port)), version)


# ---- its scope -----------------------------------------------------------------------------------------------------------


async def test_without_listeners_none_is_opened() -> None:
    async with open_broker() as hub:
        assert hub.urls == ()


async def test_the_bodys_exception_comes_out_bare() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with open_broker(listeners=["mqtt://127.0.0.1:0"]):
            raise error
    assert caught.value is error
    assert error.__context__ is None


async def test_the_bodys_own_group_is_left_alone() -> None:
    group = ExceptionGroup("mine", [KeyError("a"), ValueError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_broker():
            raise group
    assert caught.value is group


async def test_errors_of_opening_come_out_bare() -> None:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as hub:
        with pytest.raises(ListenError, match="another program is listening"):
            async with open_broker(listeners=["mqtt://127.0.0.1:0", hub.urls[0]]):
                pytest.fail("entered")
    with pytest.raises(ConfigError, match=r"limits\.receive_maximum: expected 1 to 65,535, got 0"):
        async with open_broker(receive_maximum=0):
            pytest.fail("entered")
    with pytest.raises(TypeError, match=r"open_broker\(\) has neither an argument nor a limit of the name 'bogus'"):
        async with open_broker(bogus=1):
            pytest.fail("entered")


@pytest.mark.parametrize("how", ["left", "cancelled", "raised", "shutdown"])
async def test_nothing_is_left_behind(how: str, tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    path = tmp_path / "mqtt.sock"
    before = trio.lowlevel.current_statistics().tasks_living
    fds = descriptors()
    with trio.CancelScope() as scope:
        try:
            config = Config(shutdown_grace_s=0.2)
            async with open_broker(config, listeners=["mqtt://localhost:0", *([f"unix://{path}"] if HAS_UNIX else [])]) as hub:
                url = hub.urls[0]
                client = await dialled(hub)
                await client.connect("a")
                if how == "raised":
                    raise KeyError("mine")
                if how == "cancelled":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                if how == "shutdown":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(hub.shutdown)
                        assert await client.receive() == Disconnect(ReasonCode.SERVER_SHUTTING_DOWN)
                        await client.stream.aclose()
                else:
                    await client.stream.aclose()
        except KeyError:
            assert how == "raised"
            await trio.aclose_forcefully(client.stream)
    await trio.aclose_forcefully(client.stream)
    assert not path.exists()
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert descriptors() == fds
    host, _, port = url.removeprefix("mqtt://").rpartition(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port))):
        pass


async def test_a_cancelled_scope_says_goodbye_and_flushes() -> None:
    told = []
    async with trio.open_nursery() as outer:
        ours, theirs = memory_stream_pair()
        client = Client(ours)

        async def program(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                async with open_broker() as hub, trio.open_nursery() as nursery:
                    nursery.start_soon(hub.attach, theirs)
                    task_status.started(scope)
                    await trio.sleep_forever()
            told.append("gone")

        scope = await outer.start(program)
        await client.connect("a")
        scope.cancel()
        # attach was cancelled with the body, so this client is cut off; the scope itself must still end.
        await client.receive()
        await client.stream.aclose()
    assert told == ["gone"]


async def test_a_cancelled_scope_tells_socket_clients(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.1
    async with trio.open_nursery() as outer:
        scope = trio.CancelScope()

        async def program(task_status: trio.TaskStatus[Broker]) -> None:
            with scope:
                await serve(listeners=["mqtt://127.0.0.1:0"], task_status=task_status)

        hub = await outer.start(program)
        quick, stuck = await dialled(hub), await dialled(hub)
        await quick.connect("quick")
        await stuck.connect("stuck")
        scope.cancel()
        assert await quick.receive() == Disconnect(ReasonCode.SERVER_SHUTTING_DOWN)
        await quick.stream.aclose()
        await hub._server.wait_ended()
        assert 4.9 <= trio.current_time() <= 6  # the stuck one had its shutdown_grace_s, and no more
        await stuck.stream.aclose()


@pytest.mark.parametrize("how", ["shutdown", "left", "cancelled"])
async def test_a_loop_over_a_subscription_ends_with_the_broker(how: str, autojump_clock: MockClock) -> None:
    """It waited for ever, and with it the program whose task it is."""
    got = []

    async def record(hub: Broker, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with hub.subscribe("#") as messages:
            task_status.started()
            async for message in messages:
                got.append(message.topic)

    with trio.fail_after(60):
        async with trio.open_nursery() as outside:
            with trio.CancelScope() as scope:
                async with open_broker() as hub:
                    await outside.start(record, hub)
                    await hub.publish("last", "x")
                    if how == "shutdown":
                        await hub.shutdown(1)
                    elif how == "cancelled":
                        scope.cancel()
    assert got == ["last"]
    with pytest.raises(BrokerError, match="shut down"):
        async with hub.subscribe("#"):
            pytest.fail("entered")


async def test_serve_ends_with_shutdown() -> None:
    async with trio.open_nursery() as nursery:
        hub = await nursery.start(serve)
        await hub.shutdown()
        with pytest.raises(BrokerError, match="shutting down"):
            await hub.attach(memory_stream_pair()[0])


async def test_what_is_no_config_and_no_hook_is_told_at_once() -> None:
    async def waits(*asked: object) -> bool:
        return True

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"config": "broker.toml"}, "Config.load"),
        ({"config": {"listeners": []}}, "Config.from_dict"),
        ({"authenticate": {"ann": "secret"}}, "authenticate must be an async function, not dict"),
        ({"authorize": waits}, "authorize must be a plain function"),  # nobody would await it, and everything was refused
    ]
    for given, said in wrong:
        with pytest.raises(TypeError, match=said):
            async with open_broker(**given):
                pytest.fail("opened")


async def test_serve_gives_clients_as_long_as_shutdown_says(autojump_clock: MockClock) -> None:
    """The end of its scope came at once, and with it the five seconds of `shutdown_grace_s`."""
    autojump_clock.autojump_threshold = 0.1
    async with trio.open_nursery() as nursery:
        hub = await nursery.start(partial(serve, listeners=["mqtt://127.0.0.1:0"], close_timeout_s=60))
        stuck = await dialled(hub)
        await stuck.connect("stuck")
        await hub.shutdown(20)
        assert 19.9 <= trio.current_time() <= 21
        await stuck.stream.aclose()


# ---- who may come in -----------------------------------------------------------------------------------------------------


async def test_an_open_address_needs_a_word() -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_broker(listeners=["mqtt://0.0.0.0:0"]):
            pytest.fail("entered")
    assert "allow_anonymous=True" in str(caught.value)
    assert "--" not in str(caught.value)  # a program has no flags
    assert "password_file" in str(caught.value)

    async def authenticate(request: ConnectRequest) -> str | None:
        return request.username

    async with open_broker(listeners=["mqtt://0.0.0.0:0"], authenticate=authenticate):
        pass
    async with open_broker(listeners=[Listener(host="0.0.0.0", port=0, allow_anonymous=True)]):
        pass
    async with open_broker(Config(allow_anonymous=True, sys_interval_s=0), listeners=["mqtt://0.0.0.0:0"]):
        pass
    with pytest.raises(ConfigError, match="nobody could come in"):
        async with open_broker(Config(allow_anonymous=False), listeners=["mqtt://127.0.0.1:0"]):
            pytest.fail("entered")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("adopted", [True, False])
async def test_a_reload_opens_no_address_that_needs_a_word(host: str, adopted: bool, tmp_path: Path) -> None:
    """A socket that was adopted stood open after it to everybody who could reach it."""
    (tmp_path / "passwords").write_text("")
    locked = Config(listeners=(), password_file=str(tmp_path / "passwords"), sys_interval_s=0)
    listeners = await trio.open_tcp_listeners(0, host=host) if adopted else [Listener(host=host, port=0)]
    async with open_broker(locked, listeners=listeners) as hub:
        if host == "127.0.0.1":
            assert hub.reload(Config(listeners=(), sys_interval_s=0)) == []
        else:
            with pytest.raises(ConfigError, match="can be reached from other machines"):
                hub.reload(Config(listeners=(), sys_interval_s=0))
            assert hub.reload(Config(listeners=(), sys_interval_s=0, allow_anonymous=True)) == []
        assert hub.reload(locked) == []


async def test_authenticate_decides_and_names(caplog: pytest.LogCaptureFixture) -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        await trio.lowlevel.checkpoint()
        return "alice" if request.password == b"right" else None

    async with open_broker(authenticate=authenticate) as hub, trio.open_nursery() as nursery:
        good = await attached(hub, nursery)
        with caplog.at_level(logging.INFO, "broker"):
            await good.send(Connect("a", 5, username="al", password=b"right"), PingReq())
            connack = await good.receive()
            assert getattr(connack, "reason", None) == ReasonCode.SUCCESS
            assert await good.receive() == PingResp()  # what was sent ahead is done after the answer
            assert hub.clients()[0].username == "alice"
            bad = await attached(hub, nursery)
            await bad.send(Connect("b", 5, username="al", password=b"wr0ng"))
            assert getattr(await bad.receive(), "reason", None) == ReasonCode.BAD_USER_NAME_OR_PASSWORD
            assert await bad.receive() is None
        assert "connected 'a' from in-process user='alice' version=5.0" in caplog.text
        assert "refused 'b' from in-process" in caplog.text
        assert "wr0ng" not in caplog.text
        assert "right" not in caplog.text
        nursery.cancel_scope.cancel()


async def test_one_log_line_for_each_that_never_connected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "broker")
    sent = {
        "looks": b"",
        "puback": b"\x40\x02\x00\x01",
        "http": b"GET / HTTP/1.1\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # how OpenSSL begins
        "half": b"\x10\x10\x00\x04MQ",
        "bad": b"\x10\x10\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x03abc",
        "level": b"\x10\x10\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x03abc",
    }
    async with open_broker() as hub, trio.open_nursery() as nursery:
        for peer, data in sent.items():
            client = await attached(hub, nursery, peer=peer)
            if data:
                await client.stream.send_all(data)
            await client.stream.aclose()
            await wait_all_tasks_blocked()
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "broker.clients"]
    assert said == [
        ("INFO", "no CONNECT from looks: the connection was lost"),
        ("WARNING", "no CONNECT from puback: the first packet is not CONNECT"),
        (
            "WARNING",
            "no CONNECT from http: this looks like HTTP, which this listener does not speak: MQTT over WebSocket needs one with "
            'protocol = "websocket"',
        ),
        ("WARNING", "no CONNECT from tls: this looks like TLS, which this listener does not speak: give it tls, or use another"),
        ("WARNING", "no CONNECT from half: the stream ended inside a packet, after 6 bytes of it"),
        ("WARNING", "refused '' from bad user=None: the reserved bit of the Connect Flags is set (0x81)"),
        ("WARNING", "refused '' from level user=None: protocol 'MQTT' level 6 is not supported (0x84)"),
    ]


# ---- what an embedder can do ---------------------------------------------------------------------------------------------


async def test_publish_and_subscribe_as_the_broker() -> None:
    async with open_broker() as hub, trio.open_nursery() as nursery:
        client = await attached(hub, nursery)
        await client.connect("a")
        await client.subscribe("x/#")
        assert await hub.publish("nobody") == ReasonCode.NO_MATCHING_SUBSCRIBERS
        assert await hub.publish("x/y", "text", user_properties={"k": "v"}, message_expiry_s=9) == ReasonCode.SUCCESS
        got = await client.receive()
        assert isinstance(got, Publish)
        assert (got.topic, got.payload, got.properties.user_properties, got.properties.message_expiry_interval) == ("x/y", b"text", (("k", "v"),), 9)
        await hub.publish("kept", b"1", retain=True)
        async with hub.subscribe("kept", "x/+", qos=1) as messages:
            first = await messages.receive()
            assert (first.topic, first.payload, first.retain) == ("kept", b"1", True)
            await client.send(Publish("x/z", b"2"))
            second = await messages.receive()
            assert (second.topic, second.payload, second.qos) == ("x/z", b"2", 0)
        with pytest.raises(trio.EndOfChannel):
            await messages.receive()
        assert [message.topic for message in hub.retained("#")] == ["kept"]
        with pytest.raises(InvalidTopic):
            await hub.publish("a/#")
        with pytest.raises(InvalidTopic):
            async with hub.subscribe("a/#/b"):
                pytest.fail("entered")
        nursery.cancel_scope.cancel()


async def test_clients_disconnect_and_statistics() -> None:
    async with open_broker() as hub, trio.open_nursery() as nursery:
        client = await attached(hub, nursery, peer="here")
        await client.connect("a", session_expiry_s=100)
        await client.subscribe("x", 1)
        (info,) = hub.clients()
        assert (info.client_id, info.peer, info.version, info.queue_count) == ("a", "here", "5.0", 0)
        assert info.connected_at_s is not None
        assert hub.disconnect("a")
        assert await client.receive() == Disconnect(ReasonCode.ADMINISTRATIVE_ACTION)
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        await hub.publish("x", b"12345", qos=1)
        (info,) = hub.clients()
        assert (info.peer, info.version, info.connected_at_s, info.queue_count, info.queue_bytes) == (None, None, None, 1, 6)
        assert hub.disconnect("a", drop_session=True)
        assert not hub.disconnect("a")
        assert hub.clients() == []
        statistics = hub.statistics()
        assert statistics["connections_open_count"] == 0
        assert statistics["bytes_received"] > 0


async def test_publish_waits_for_a_stuck_subscriber_on_credit_only(autojump_clock: MockClock) -> None:
    async with open_broker(outbox_bytes_high=10_000, slow_subscriber_grace_s=2) as hub, trio.open_nursery() as nursery:
        stuck = await attached(hub, nursery, buffer_bytes=1000)
        await stuck.connect("stuck")
        await stuck.subscribe("x")
        for _ in range(100):
            await hub.publish("x", b"x" * 1000)
        assert 2 <= trio.current_time() <= 3
        nursery.cancel_scope.cancel()


async def test_a_takeover_waits_for_nobody(autojump_clock: MockClock) -> None:
    """The old client hangs: it reads nothing, and does not close. The new one is served at once."""
    async with open_broker() as hub, trio.open_nursery() as nursery:
        old = await attached(hub, nursery, buffer_bytes=100)
        await old.connect("a")
        await old.subscribe("x")
        for _ in range(10):
            await hub.publish("x", b"x" * 100)
        for _ in range(2):  # and again, while the first still hangs
            new = await attached(hub, nursery)
            await new.connect("a")
            await new.send(PingReq())
            assert await new.receive() == PingResp()
            assert trio.current_time() == 0
        assert [info.client_id for info in hub.clients()] == ["a"]
        await trio.sleep(6)  # close_timeout_s
        assert hub.statistics()["connections_open_count"] == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["socket", "memory"])
async def test_a_half_closed_peer_gets_what_is_found_in_many_turns(kind: str) -> None:
    """As `nc -N` is one. It was left as soon as a turn had found nothing."""
    async with open_broker(listeners=[Listener(port=0)], work_per_turn_max=20) as hub, trio.open_nursery() as nursery:
        for topic in [*(f"k/{number}/y" for number in range(3000)), "k/last/x"]:
            hub._engine.publish(ApplicationMessage(topic, b"x", retain=True), trio.current_time())
        stream: trio.abc.HalfCloseableStream
        if kind == "socket":
            stream = await trio.open_tcp_stream("127.0.0.1", int(hub.urls[0].rpartition(":")[2]))
        else:
            stream, inside = memory_stream_pair()
            nursery.start_soon(hub.attach, inside)
        client = Client(stream)
        with trio.fail_after(10):
            await client.send(Connect("c"), Subscribe(1, (SubscriptionRequest("k/+/x"),)))
            await stream.send_eof()
            got = [packet async for packet in _packets(client)]
        assert [packet.topic for packet in got if isinstance(packet, Publish)] == ["k/last/x"]
        await stream.aclose()
        assert not hub._engine.state.backlog


async def _packets(client: Client) -> AsyncIterator[Packet]:
    while (packet := await client.receive()) is not None:
        yield packet


async def test_violations_are_logged_with_id_address_and_cause(caplog: pytest.LogCaptureFixture) -> None:
    async with open_broker() as hub, trio.open_nursery() as nursery:
        bad, good = await attached(hub, nursery, peer="192.0.2.7:5"), await attached(hub, nursery)
        await bad.connect("bad")
        await good.connect("good")
        await bad.stream.send_all(b"\xff\x00")
        assert isinstance(await bad.receive(), Disconnect)
        assert "'bad' from 192.0.2.7:5" in caplog.text
        await good.send(PingReq())
        assert await good.receive() == PingResp()
        nursery.cancel_scope.cancel()


async def test_reload() -> None:
    config = Config(sys_interval_s=0)
    async with open_broker(config, listeners=[]) as hub:
        changed = Config.from_dict(
            {
                "sys_interval_s": 0,
                "limits": {"retained_count_max": 1},
                "log": {"format": "json", "connections": False},
                "store": {"path": "x.db"},
                "listeners": [{"port": 5}],
            }
        )
        assert hub.reload(changed) == ["listeners", "log.format", "store.path"]
        await hub.publish("a", b"1", retain=True)
        await hub.publish("b", b"1", retain=True)
        assert len(hub.retained()) == 1


# ---- $SYS ----------------------------------------------------------------------------------------------------------------


async def test_sys_topics_come_and_change(autojump_clock: MockClock) -> None:
    async with open_broker(Config(sys_interval_s=10), listeners=[]) as hub, trio.open_nursery() as nursery:
        await trio.sleep(1)
        found = {message.topic: message.text for message in hub.retained("$SYS/#")}
        assert found["$SYS/broker/clients/connected"] == "0"
        assert found["$SYS/broker/version"].startswith("broker version ")
        assert "$SYS/broker/load/messages/received/1min" in found
        assert "$SYS/broker/retained messages/count" in found
        assert int(found["$SYS/broker/memory/bytes"]) == int(found["$SYS/broker/memory/retained/bytes"])
        assert found["$SYS/broker/memory/receiving/bytes"] == "0"
        client = await attached(hub, nursery)
        await client.connect("a")
        await client.subscribe("$SYS/broker/clients/#")
        await trio.sleep(10)
        found = {message.topic: message.text for message in hub.retained("$SYS/#")}
        assert found["$SYS/broker/clients/connected"] == "1"
        assert found["$SYS/broker/uptime"] == "10 seconds"
        assert float(found["$SYS/broker/load/messages/received/1min"]) > 0
        hub.reload(Config(sys_interval_s=0))
        await trio.sleep(100)
        assert [m.text for m in hub.retained("$SYS/broker/uptime")] == ["10 seconds"]
        nursery.cancel_scope.cancel()


async def test_embedded_brokers_have_no_sys_topics(autojump_clock: MockClock) -> None:
    async with open_broker() as hub:
        await trio.sleep(1000)
        assert hub.retained("$SYS/#") == []
        assert hub.statistics()["uptime_s"] == 1000
        assert math.isfinite(hub.statistics()["bytes_sent"])
