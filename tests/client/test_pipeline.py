"""Many publishes at a time: order, bounds, the first failure, and what QoS 0 costs in turns."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from broker import open_broker
from broker.client import connect
from broker.errors import ConnectionLost, PublishRefused
from broker.reasons import ReasonCode
from broker.wire.packets import Disconnect, PubAck, PubComp, Publish, PubRec, PubRel
from tests.client.scripted import Peer, connected


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("in_process", [True, False])
async def test_all_arrive_in_order(qos: int, in_process: bool) -> None:
    with trio.fail_after(30):
        async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker:
            where = broker if in_process else broker.urls[0]
            seen: list[int] = []
            async with connect(where) as ours, connect(where) as theirs, theirs.subscribe("a", qos=qos) as subscription:

                async def take() -> None:
                    async for message in subscription:
                        seen.append(int(message.payload))
                        if len(seen) == 3000:
                            return

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(take)
                    async with ours.pipeline() as pipeline:
                        for number in range(3000):
                            await pipeline.publish("a", b"%d" % number, qos=qos)
            assert seen == list(range(3000))


async def answer(peer: Peer, count: int) -> None:
    for _ in range(count):
        packet = await peer.expect(Publish)
        await peer.send(PubAck(packet.packet_id))


@pytest.mark.parametrize(("count_max", "bytes_max"), [(2, 1000), (100, 20)])
async def test_several_tasks_share_its_bounds(count_max: int, bytes_max: int, autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with (
            connected() as (client, peer, _),
            client.pipeline(count_max=count_max, bytes_max=bytes_max) as pipeline,
            trio.open_nursery() as nursery,
        ):
            for _ in range(8):
                nursery.start_soon(partial(pipeline.publish, "a", bytes(10), qos=1))
            for _ in range(4):
                await trio.testing.wait_all_tasks_blocked()
                assert client.statistics()["outgoing"] == 2
                await answer(peer, 2)


@pytest.mark.parametrize(("count_max", "bytes_max", "fit"), [(3, 1000, 3), (100, 25, 2), (100, 1, 1)])
async def test_it_is_bounded_by_count_and_by_bytes(count_max: int, bytes_max: int, fit: int, autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected() as (client, peer, _), trio.open_nursery() as nursery:
            begun: list[int] = []

            async def publish() -> None:
                async with client.pipeline(count_max=count_max, bytes_max=bytes_max) as pipeline:
                    for number in range(5):
                        await pipeline.publish("a", bytes(10), qos=1)
                        begun.append(number)

            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
            assert len(begun) == fit
            await answer(peer, 5)


async def test_the_first_refusal_is_raised_and_the_rest_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected() as (client, peer, _):
            ids: list[int] = []

            async def publish() -> None:
                async with client.pipeline() as pipeline:
                    await pipeline.publish("a", qos=1)
                    await pipeline.publish("b", qos=2)
                    for _ in range(2):
                        ids.append((await peer.expect(Publish)).packet_id)
                    await peer.send(PubAck(ids[0], ReasonCode.NOT_AUTHORIZED))
                    await trio.testing.wait_all_tasks_blocked()
                    await pipeline.publish("c", qos=1)
                    raise AssertionError("the refusal was not raised")

            with pytest.raises(PublishRefused):
                await publish()
            await peer.send(PubRec(ids[1]))
            await peer.expect(PubRel)
            await peer.send(PubComp(ids[1]))
            await trio.testing.wait_all_tasks_blocked()
            assert client.statistics()["outgoing"] == 0


async def test_a_lost_connection_ends_it(autojump_clock: trio.testing.MockClock) -> None:

    async def publish() -> None:
        async with connected(reconnect=None) as (client, peer, _), client.pipeline(count_max=1) as pipeline:
            await pipeline.publish("a", qos=1)
            await peer.cut()
            await pipeline.publish("b", qos=1)

    with trio.fail_after(60), pytest.RaisesGroup(ConnectionLost):
        await publish()


async def test_cancelled_it_takes_back_what_has_not_left(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected() as (client, peer, _):
            with trio.move_on_after(1) as scope:
                async with client.pipeline() as pipeline:
                    await pipeline.publish("a", qos=1)
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            await answer(peer, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert client.statistics()["outgoing"] == 0


async def test_bounds_are_checked(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, _, _):
        with pytest.raises(ValueError, match="at least 1"):
            await client.pipeline(count_max=0).__aenter__()


async def test_qos_0_over_a_socket_is_the_kernels_when_publish_returns() -> None:
    """No other task has had a turn by then, so it was not the writing task that sent it."""
    with trio.fail_after(10):
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with listener, trio.open_nursery() as nursery:
            accepted: list[trio.SocketStream] = []
            connection = trio.Event()

            async def accept() -> None:
                peer = Peer(await listener.accept())
                await peer.accept()
                accepted.append(peer.stream)  # type: ignore[arg-type]  # a TCP listener's streams
                connection.set()

            nursery.start_soon(accept)
            async with connect(f"mqtt://127.0.0.1:{listener.socket.getsockname()[1]}", client_id="me", close_grace_s=0.5) as client:
                await connection.wait()
                turns = 0

                async def count_turns() -> None:
                    nonlocal turns
                    while True:
                        await trio.lowlevel.checkpoint()
                        turns += 1

                nursery.start_soon(count_turns)
                await client.publish("a", b"first")  # may rest
                before = turns
                for _ in range(3):
                    await client.publish("a", b"x" * 1000)
                assert turns - before <= 2
                assert client.statistics()["published"] == 4
                assert client.core.data_to_send() == b""
                # More than the kernel takes: the rest is the writing task's, and not a byte is lost or said twice.
                reading = Peer(accepted[0])
                nursery.start_soon(client.publish, "big", bytes(8_000_000))
                for _ in range(4):
                    await reading.expect(Publish)
                assert len((await reading.expect(Publish)).payload) == 8_000_000
                nursery.start_soon(client.disconnect)
                assert isinstance(await reading.receive(), Disconnect)
                nursery.cancel_scope.cancel()
            await trio.aclose_forcefully(accepted[0])
