"""Who gets a turn when: a loop that keeps up loses nothing, nobody is starved, and nobody who sleeps is waited for."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from broker.channel import MessageChannel, Subscription
from broker.errors import ConnectionLost
from broker.messages import Message
from broker.pace import IN_A_ROW_COUNT_MAX, Pace
from broker.wire.packets import PingReq, PingResp, Publish
from tests.client.scripted import connected


def filled(count: int) -> Subscription:
    channel = MessageChannel(buffer_count_max=count)
    for number in range(count):
        channel.offer(Message(str(number)))
    return Subscription((), (), channel)


async def turns_while(subscription: Subscription, *, work_s: float = 0.0, clock: trio.testing.MockClock | None = None) -> int:
    """How many turns others get while a loop empties this subscription."""
    turns = 0

    async def neighbour() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour)
        await trio.lowlevel.checkpoint()
        async for _ in subscription:
            if clock is not None:
                clock.jump(work_s)
            if subscription.statistics()["waiting"] == 0:
                break
        nursery.cancel_scope.cancel()
    return turns


async def test_a_loop_takes_many_in_a_row_and_yet_lets_others_in(mock_clock: trio.testing.MockClock) -> None:
    rounds = 10
    turns = await turns_while(filled(rounds * IN_A_ROW_COUNT_MAX))
    assert rounds - 1 <= turns <= rounds + 3


async def test_a_loop_that_works_long_for_each_message_lets_others_in_at_each(mock_clock: trio.testing.MockClock) -> None:
    assert await turns_while(filled(50), work_s=0.002, clock=mock_clock) >= 49


async def test_cancellation_is_honoured_at_each_message() -> None:
    subscription = filled(10)
    with trio.CancelScope() as scope:
        async for message in subscription:
            if message.topic == "3":
                scope.cancel()
    assert scope.cancelled_caught
    assert (await subscription.receive()).topic == "4"


async def test_pace_honours_cancellation_and_rests() -> None:
    pace = Pace()
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(2):
            with pytest.raises(trio.Cancelled):
                await pace.checkpoint()
        pace.rested()
        await pace.checkpoint()
    assert scope.cancelled_caught


@pytest.mark.parametrize("buffer_count_max", [1, 2, 10, 1000])
@pytest.mark.parametrize("tasks", [1, 3])
async def test_loops_that_only_take_lose_nothing(buffer_count_max: int, tasks: int, autojump_clock: trio.testing.MockClock) -> None:
    count = 5000  # all of them in one or two reads
    seen: list[int] = []
    with trio.fail_after(60):
        async with connected() as (client, peer, _), trio.open_nursery() as nursery:
            nursery.start_soon(peer.grant)
            async with client.subscribe("a", buffer_count_max=buffer_count_max) as subscription:

                async def take() -> None:
                    async for message in subscription:
                        seen.append(int(message.payload))
                        if len(seen) == count:
                            nursery.cancel_scope.cancel()

                for _ in range(tasks):
                    nursery.start_soon(take)
                await peer.send(*(Publish("a", b"%d" % number) for number in range(count)))
                await trio.sleep_forever()
    assert sorted(seen) == list(range(count))
    assert tasks > 1 or seen == sorted(seen)


async def test_a_loop_that_publishes_what_it_gets_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected() as (client, peer, _), trio.open_nursery() as nursery:
            nursery.start_soon(peer.grant)
            async with client.subscribe("a", buffer_count_max=10) as subscription:

                async def send() -> None:
                    await peer.send(*(Publish("a", b"%d" % number) for number in range(500)))
                    for number in range(500):
                        assert (await peer.expect(Publish)).payload == b"%d" % number
                    nursery.cancel_scope.cancel()

                nursery.start_soon(send)
                async for message in subscription:
                    await client.publish("b", message.payload)


async def test_a_loop_that_sleeps_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected() as (client, peer, _), trio.open_nursery() as nursery:
            nursery.start_soon(peer.grant)
            async with client.subscribe("a", buffer_count_max=10) as subscription:
                await peer.send(*(Publish("a", b"%d" % number) for number in range(5000)), PingResp())
                await trio.testing.wait_all_tasks_blocked()
                assert trio.current_time() < 1
                assert subscription.statistics() == {"received": 5000, "taken": 0, "dropped": 4990, "refused": 0, "waiting": 10}
                # Neither are its neighbours: what comes for them comes at once.
                nursery.start_soon(peer.grant)
                async with client.subscribe("b") as other:
                    await peer.send(Publish("b", b"now"))
                    assert (await other.receive()).payload == b"now"
                    nursery.start_soon(peer.let_go)
                nursery.start_soon(peer.let_go)


async def test_an_end_within_the_rest_of_a_read_is_seen(autojump_clock: trio.testing.MockClock) -> None:
    """More than one turn's packets, then a fault: all of the former first."""

    async def receive() -> None:
        async with connected(reconnect=None) as (client, peer, _), trio.open_nursery() as nursery:
            nursery.start_soon(peer.grant)
            async with client.subscribe("a") as subscription:
                await peer.send(*(Publish("a", b"") for _ in range(600)), PingReq())
                try:
                    await trio.sleep_forever()
                finally:
                    assert subscription.statistics()["received"] == 600

    with trio.fail_after(60), pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost, match="broke the protocol")):
        await receive()
