"""How a connection begins, how it ends, and how both can fail."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from broker import Broker, open_broker
from broker.client import Client, Reconnect, Will, connect
from broker.errors import ConnectError, ConnectionLost, ConnectRefused
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Disconnect, PingReq, PingResp, Properties, Publish
from tests.client.scripted import Peer, ScriptedBroker, connected


async def test_connect_and_leave(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery:
        seen: list[object] = []

        async def serve() -> None:
            peer = await broker.next()
            seen.append(await peer.accept())
            seen.append(await peer.receive())
            seen.append(await peer.receive())
            await peer.cut()

        nursery.start_soon(serve)
        async with connect(broker, will=Will("gone", "x", delay_s=1.5), keep_alive_s=30) as client:
            assert client.client_id == "assigned"
            assert not client.session_present
    assert not client.connected
    asked, goodbye, end = seen
    assert isinstance(asked, Connect)
    assert asked.keep_alive_s == 30
    assert asked.clean_start
    assert asked.will is not None
    assert asked.will.properties.will_delay_interval == 2
    assert goodbye == Disconnect(ReasonCode.SUCCESS)
    assert end is None
    with pytest.raises(ConnectionLost):
        await client.publish("a")


async def test_the_bodys_error_leaves_bare_and_publishes_the_will(autojump_clock: trio.testing.MockClock) -> None:
    boom = RuntimeError("boom")
    broker = ScriptedBroker()
    goodbyes = []

    async def serve() -> None:
        peer = await broker.next()
        await peer.accept()
        goodbyes.append(await peer.receive())
        await peer.cut()

    async def body() -> None:
        async with connect(broker):
            raise boom

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(RuntimeError) as caught:
            await body()
    assert caught.value is boom
    assert goodbyes == [Disconnect(ReasonCode.DISCONNECT_WITH_WILL)]


async def test_cancelled_says_a_plain_goodbye_and_does_not_wait(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()
    goodbyes = []

    async def serve() -> None:
        peer = await broker.next()
        await peer.accept()
        goodbyes.append(await peer.receive())
        goodbyes.append(await peer.receive())
        await peer.cut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.CancelScope() as scope:
            async with connect(broker):
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert goodbyes == [Disconnect(ReasonCode.SUCCESS), None]
    assert trio.current_time() < 1


@pytest.mark.parametrize("turns", range(3))
async def test_cancelled_before_it_is_connected_it_waits_for_nothing(autojump_clock: trio.testing.MockClock, turns: int) -> None:
    """Which of the tasks comes first is chance, so it is tried often; the broker waits for a CONNECT that will not come."""
    async with open_broker() as hub:
        for _ in range(20):
            began = trio.current_time()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, turns, scope)
                    async with connect(hub):
                        await trio.sleep_forever()
            assert trio.current_time() == began


async def cancel_after(turns: int, scope: trio.CancelScope) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_refusal_is_raised_bare(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()

    async def serve() -> None:
        peer = await broker.next()
        await peer.expect(Connect)
        await peer.send(ConnAck(False, ReasonCode.NOT_AUTHORIZED, Properties(reason_string="go away")))
        await peer.cut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ConnectRefused, match="go away") as caught:
            async with connect(broker):
                pytest.fail("entered")
    assert caught.value.reason == ReasonCode.NOT_AUTHORIZED
    assert caught.value.return_code == 0x87


async def test_a_refusal_in_3_1_1_keeps_its_return_code(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()

    async def serve() -> None:
        peer = await broker.next()
        await peer.expect(Connect)
        await peer.send(ConnAck(False, ReasonCode.NOT_AUTHORIZED))
        await peer.cut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ConnectRefused) as caught:
            async with connect(broker, version="3.1.1"):
                pytest.fail("entered")
    assert (caught.value.reason, caught.value.return_code) == (ReasonCode.NOT_AUTHORIZED, 5)


async def test_no_connack_in_time(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()
    with pytest.raises(ConnectError, match="CONNACK"):
        async with connect(broker, connect_timeout_s=3):
            pytest.fail("entered")
    assert 3 <= trio.current_time() < 9


async def test_nothing_listens() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(ConnectError, match=f"127.0.0.1:{port}.*refused"):
        async with connect(f"mqtt://me:secret@127.0.0.1:{port}"):
            pytest.fail("entered")


async def test_the_first_dial_is_repeated_when_asked(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()

    async def serve() -> None:
        await (await broker.next()).cut()
        await (await broker.next()).cut()
        await (await broker.next()).accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with connect(broker, reconnect=Reconnect(first=True)):
            assert broker.dialled == 3


async def test_giving_up(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()

    async def serve() -> None:
        for _ in range(3):
            await (await broker.next()).cut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ConnectError):
            async with connect(broker, reconnect=Reconnect(first=True, attempts_max=3)):
                pytest.fail("entered")
    assert broker.dialled == 3


async def refuse_all(broker: ScriptedBroker) -> None:
    while True:
        await (await broker.next()).cut()


async def test_it_gives_up_when_it_was_told_to(autojump_clock: trio.testing.MockClock) -> None:
    """And not only when the delay that it stands in is over, which may be half a minute later."""
    for how in (Reconnect(first=True, delay_s=1000, delay_s_max=1000, give_up_after_s=20), Reconnect(first=True, give_up_after_s=20)):
        broker = ScriptedBroker()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse_all, broker)
            with pytest.raises(ConnectError):
                async with connect(broker, reconnect=how):
                    pytest.fail("entered")
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began == pytest.approx(20)
        assert broker.dialled >= 2


async def gaps(monkeypatch: pytest.MonkeyPatch, how: Reconnect, ends: list[tuple[float, ReasonCode | None]]) -> list[float]:
    """Between one dial and the next, at its longest, where each connection ends after so many seconds, with DISCONNECT of that reason or without."""
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    broker = ScriptedBroker()
    dialled_at: list[float] = []
    enough = trio.Event()

    async def serve() -> None:
        for seconds, reason in ends:
            peer = await broker.next()
            dialled_at.append(trio.current_time())
            await peer.accept()
            await trio.sleep(seconds)
            if reason is not None:
                await peer.send(Disconnect(reason))
            await peer.cut()
        await (await broker.next()).accept()
        dialled_at.append(trio.current_time())
        enough.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with connect(broker, client_id="me", reconnect=how):
            await enough.wait()
        nursery.cancel_scope.cancel()
    return [after - before for before, after in pairwise(dialled_at)]


async def test_a_broker_that_hangs_up_at_once_is_dialled_less_often(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Reconnect(delay_s=1, delay_s_max=100, attempts_max=1)
    between = await gaps(monkeypatch, how, [(seconds, None) for seconds in (0, 0, 0, 0, 0, 31)])
    assert between == pytest.approx([2, 4, 8, 8, 8, 31 + 1])


async def test_one_that_says_it_shuts_down_is_soon_dialled_again(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarted three times in a row by whoever runs it. With another word, or none, it may be this client that it cannot bear."""
    reasons = [ReasonCode.SERVER_SHUTTING_DOWN] * 3 + [ReasonCode.SERVER_BUSY] * 2 + [ReasonCode.SERVER_SHUTTING_DOWN] * 2
    between = await gaps(monkeypatch, Reconnect(delay_s=1, delay_s_max=100), [(0, reason) for reason in reasons])
    assert between == pytest.approx([1, 1, 1, 2, 4, 4, 4])


async def test_what_the_broker_explains_stays_on_one_line(autojump_clock: trio.testing.MockClock) -> None:
    """A terminal shows it, and a log: no line of the peer's own, and no escape sequence."""
    spiteful = Properties(reason_string="gone\nbroker: all is well \x1b[2J")
    broker = ScriptedBroker()

    async def refuse() -> None:
        peer = await broker.next()
        await peer.expect(Connect)
        await peer.send(ConnAck(False, ReasonCode.NOT_AUTHORIZED, spiteful))

    async def hang_up() -> None:
        async with bare(reconnect=None) as (_, peer):
            await peer.send(Disconnect(ReasonCode.SERVER_BUSY, spiteful))
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(ConnectRefused) as refused:
            async with connect(broker, client_id="me"):
                pytest.fail("entered")
    with pytest.raises(ConnectionLost) as lost:
        await hang_up()
    for caught in (refused, lost):
        assert str(caught.value).isprintable()
        assert r"gone\nbroker: all is well \x1b[2J" in str(caught.value)


async def test_connection_lost_cancels_the_body_and_arrives_bare(autojump_clock: trio.testing.MockClock) -> None:
    cancelled = []

    async def body() -> None:
        async with bare(reconnect=None) as (_, peer):
            await peer.send(Disconnect(ReasonCode.SERVER_SHUTTING_DOWN))
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append(trio.current_effective_deadline() == -math.inf)

    with pytest.raises(ConnectionLost) as caught:
        await body()
    assert cancelled == [True]
    assert caught.value.reason == ReasonCode.SERVER_SHUTTING_DOWN


async def test_a_session_taken_over_is_not_taken_back(autojump_clock: trio.testing.MockClock) -> None:
    async def body() -> None:
        async with bare() as (_, peer):
            await peer.send(Disconnect(ReasonCode.SESSION_TAKEN_OVER))
            await trio.sleep_forever()

    with pytest.raises(ConnectionLost) as caught:
        await body()
    assert caught.value.reason == ReasonCode.SESSION_TAKEN_OVER


async def test_tasks_of_the_body_that_hear_of_the_loss_do_not_hide_it(autojump_clock: trio.testing.MockClock) -> None:
    async def body() -> None:
        async with bare(reconnect=None) as (client, peer), trio.open_nursery() as nursery:
            nursery.start_soon(client.wait_connected)
            with trio.CancelScope(shield=True):
                await peer.cut()
                await trio.sleep(20)
                await client.publish("a", qos=1)

    with pytest.raises(ConnectionLost):
        await body()


async def test_pings_when_idle_and_gives_up_without_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    times = []

    async def body() -> None:
        async with bare(keep_alive_s=20, reconnect=None) as (_, peer):
            times.append(trio.current_time())
            await peer.expect(PingReq)
            times.append(trio.current_time())
            await peer.send(PingResp())
            await peer.expect(PingReq)
            times.append(trio.current_time())
            await trio.sleep_forever()

    with pytest.raises(ConnectionLost, match="PINGREQ"):
        await body()
    begun, first, second = times
    assert 15 < first - begun <= 20
    assert 15 < second - first <= 20
    assert 9 < trio.current_time() - second < 20


async def test_a_long_packet_on_a_slow_line_is_no_silence(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(keep_alive_s=20, reconnect=None) as (client, peer, _broker), trio.open_nursery() as nursery:
        nursery.start_soon(client.publish, "a", bytes(2_000_000))
        left = 2_000_000
        while left > 0:
            await trio.sleep(5)
            left -= len(await peer.stream.receive_some(min(65_536, left)))
        assert trio.current_time() > 150


async def test_the_servers_keep_alive_counts(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(Properties(server_keep_alive=5), keep_alive_s=600) as (_, peer, _broker):
        start = trio.current_time()
        await peer.expect(PingReq)
        assert trio.current_time() - start <= 5


async def test_leaving_waits_for_what_is_under_way(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    async with trio.open_nursery() as nursery, connected(close_grace_s=3) as (client, _, _broker):
        nursery.start_soon(ignore_lost, client)
        await trio.testing.wait_all_tasks_blocked()
    assert 3 <= trio.current_time() - start < 10


async def ignore_lost(client: Client) -> None:
    with pytest.raises(ConnectionLost):
        await client.publish("a", qos=1)


async def test_a_crash_of_the_in_process_broker_arrives_bare(autojump_clock: trio.testing.MockClock) -> None:
    class Crashing:
        async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
            raise KeyError("a fault")

    with pytest.raises(KeyError):
        async with connect(Crashing()):
            pytest.fail("entered")


async def test_an_in_process_broker_that_has_ended_is_a_lost_connection(autojump_clock: trio.testing.MockClock) -> None:
    """It came as a plain BrokerError, which `except ConnectionLost` does not catch."""

    async def body(hub: Broker) -> None:
        async with connect(hub):
            await hub.shutdown()
            await trio.sleep_forever()

    with trio.fail_after(60):
        async with open_broker() as hub:
            with pytest.raises(ConnectionLost, match="in-process: the broker is shutting down"):
                await body(hub)
            with pytest.raises(ConnectError, match="in-process: the broker is shutting down"):
                async with connect(hub):
                    pytest.fail("entered")


async def test_a_broker_that_has_moved_says_where_to_and_is_not_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    moved = Properties(reason_string="new machine", server_reference="mqtt.example:1883")

    async def body() -> None:
        async with bare() as (_, peer):
            await peer.send(Disconnect(ReasonCode.SERVER_MOVED, moved))
            await trio.sleep_forever()

    with trio.fail_after(60):
        with pytest.raises(ConnectionLost, match=r"server moved .*new machine; the server to use is mqtt\.example:1883") as caught:
            await body()
        assert caught.value.reason == ReasonCode.SERVER_MOVED
        async with trio.open_nursery() as nursery:
            broker = ScriptedBroker()

            async def refuse() -> None:
                peer = await broker.next()
                await peer.receive()
                await peer.send(ConnAck(False, ReasonCode.USE_ANOTHER_SERVER, Properties(server_reference="b.example")))
                await peer.cut()

            nursery.start_soon(refuse)
            with pytest.raises(ConnectRefused, match=r"use another server .*the server to use is b\.example"):
                async with connect(broker):
                    pytest.fail("entered")


async def test_explicit_disconnect(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.disconnect(publish_will=True))
            assert await peer.receive() == Disconnect(ReasonCode.DISCONNECT_WITH_WILL)
            assert await peer.receive() is None
            await peer.cut()
        assert not client.connected
        with pytest.raises(ConnectionLost):
            await client.publish("a")


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("mqtt://host/path", {}),
        ("http://host", {}),
        ("mqtt://", {}),
        ("mqtt://host?colour=red", {}),
        ("mqtt://host?keep_alive_s=often", {}),
        ("unix://relative/path", {}),
        ("mqtt://host", {"version": "4"}),
        ("mqtt://host", {"receive_maximum": 0}),
        ("mqtt://host", {"keep_alive_s": 65_536}),
        ("mqtt://host:99999", {}),
    ],
)
def test_wrong_calls_fail_at_once(where: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        connect(where, **options)


async def test_url_keywords_stand_for_those_not_given(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[Connect] = []

    async def serve(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        seen.append(await peer.accept())
        await peer.receive()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with connect(f"mqtt://u%40x:p%3Aw@127.0.0.1:{port}?client_id=from%20url&keep_alive_s=7", keep_alive_s=60):
            pass
        nursery.cancel_scope.cancel()
    assert seen[0].username == "u@x"
    assert seen[0].password == b"p:w"
    assert seen[0].client_id == "from url"
    assert seen[0].keep_alive_s == 60


async def test_packets_can_be_watched(autojump_clock: trio.testing.MockClock) -> None:
    watched: list[tuple[str, str, bytes]] = []
    async with connected(on_packet=lambda way, packet, frame: watched.append((way, type(packet).__name__, frame))) as (client, peer, _):
        await client.publish("a", b"x")
        assert await peer.receive() == Publish("a", b"x")
    assert [(way, name) for way, name, _ in watched] == [("sent", "Connect"), ("received", "ConnAck"), ("sent", "Publish"), ("sent", "Disconnect")]
    assert watched[2][2] == b"\x30\x05\x00\x01a\x00x"


class bare:
    """`connected` without a nursery of the test's around it, whose group would hide how an error arrives."""

    def __init__(self, **options: Any) -> None:
        self._broker = ScriptedBroker()
        options.setdefault("client_id", "me")
        self._manager = connect(self._broker, **options)
        self._peer: Peer | None = None

    async def __aenter__(self) -> tuple[Client, Peer]:
        trio.lowlevel.spawn_system_task(self._serve)
        client = await self._manager.__aenter__()
        while self._peer is None:
            await trio.lowlevel.checkpoint()
        return client, self._peer

    async def _serve(self) -> None:
        peer = await self._broker.next()
        await peer.accept()
        self._peer = peer

    async def __aexit__(self, *error: Any) -> bool | None:
        assert self._peer is not None
        self._peer.ended.set()
        return await self._manager.__aexit__(*error)
