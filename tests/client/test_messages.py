"""Receiving: which subscription gets what, when it is settled, and that nothing else waits for a slow loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import structs

from broker.client import Client, Message, Reconnect, connect
from broker.errors import InvalidTopic, NotSupported, SubscribeRefused, SubscriptionExists
from broker.reasons import ReasonCode
from broker.wire.packets import Disconnect, PingReq, PingResp, Properties, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe, Unsubscribe
from tests.client.scripted import Peer, ScriptedBroker, connected

settle_at = trio.testing.wait_all_tasks_blocked


def publish(topic: str, number: int, *, qos: int = 1, ids: tuple[int, ...] = (1,)) -> Publish:
    properties = Properties(subscription_identifiers=ids) if ids else Properties()
    return Publish(topic, str(number).encode(), qos, packet_id=number if qos else 0, properties=properties)


async def test_subscribe_and_leave(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        asked: list[Any] = []

        async def serve() -> None:
            asked.append(await peer.grant(1, 0))
            asked.append(await peer.let_go())

        nursery.start_soon(serve)
        async with client.subscribe("a/#", "b", qos=1, retained="if-new", retain_as_published=True, no_local=True) as subscription:
            assert subscription.filters == ("a/#", "b")
            assert subscription.granted == (1, 0)
        with pytest.raises(trio.EndOfChannel):
            await subscription.receive()
        subscribe, unsubscribe = asked
        assert [(one.filter, one.qos, one.no_local, one.retain_as_published, one.retain_handling) for one in subscribe.subscriptions] == [
            ("a/#", 1, True, True, 1),
            ("b", 1, True, True, 1),
        ]
        assert subscribe.properties.subscription_identifiers == (1,)
        assert unsubscribe.filters == ("a/#", "b")


async def test_settled_when_the_next_is_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1) as subscription:
            await peer.send(publish("a", 1), publish("a", 2), publish("a", 3))
            seen: list[bytes] = []
            async for message in subscription:
                if seen:
                    await peer.settled(1)
                await peer.silence()  # the one in hand is not settled
                seen.append(message.payload)
                if len(seen) > 1:
                    break
            assert seen == [b"1", b"2"]
            nursery.start_soon(leave, peer, [PubAck(2), PubAck(3, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)])
        # `break` settled the second; the third was never taken, and nobody is left to take it
        assert subscription.statistics()["refused"] == 1


async def leave(peer: Peer, first: list[Any]) -> None:
    for packet in first:
        assert await peer.receive() == packet
    await peer.let_go()


@pytest.mark.parametrize(("keep", "answer"), [(False, [PubAck(1, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)]), (True, [])])
async def test_an_exception_leaves_the_message_in_hand_unsettled(autojump_clock: trio.testing.MockClock, keep: bool, answer: list[Any]) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)

        async def body() -> None:
            async with client.subscribe("a", qos=1, keep=keep) as subscription:
                await peer.send(publish("a", 1))
                async for message in subscription:
                    raise KeyError(message.topic)

        with pytest.raises(KeyError):
            await body()
        for packet in answer:
            assert await peer.receive() == packet
        if not keep:
            await peer.expect(Unsubscribe)
        await peer.silence(60)


async def test_settlements_leave_in_order_of_arrival_over_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=2) as a:
            nursery.start_soon(peer.grant)
            async with client.subscribe("b", qos=2) as b:
                await peer.send(publish("a", 1, qos=2), publish("b", 2, ids=(2,)), publish("b", 3, qos=2, ids=(2,)))
                await a.receive()
                nursery_b = [await b.receive(), await b.receive()]
                await settle_at()
                with trio.move_on_after(1):
                    await b.receive()  # settles both of b's
                await peer.silence()
                with trio.move_on_after(1):
                    await a.receive()
                assert [message.payload for message in nursery_b] == [b"2", b"3"]
                assert [await peer.receive() for _ in range(3)] == [PubRec(1), PubAck(2), PubRec(3)]
                await peer.send(PubRel(1), PubRel(3))
                assert [await peer.receive() for _ in range(2)] == [PubComp(1), PubComp(3)]
                nursery.start_soon(two_leave, peer)


async def two_leave(peer: Peer) -> None:
    await peer.let_go()
    await peer.let_go()


async def test_a_slow_loop_holds_up_neither_pings_nor_our_own_publishes(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(keep_alive_s=10, receive_maximum=2) as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1) as subscription:
            await peer.send(publish("a", 1), publish("a", 2))
            await subscription.receive()
            # The loop is stuck here, with Receive Maximum used up; all else goes on.
            nursery.start_soon(answer_pings_then_ack, peer)
            await trio.sleep(25)
            assert await client.publish("x", qos=1) == ReasonCode.SUCCESS
            nursery.start_soon(leave, peer, [PubAck(1), PubAck(2, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)])


async def answer_pings_then_ack(peer: Peer) -> None:
    while isinstance(packet := await peer.receive(), PingReq):
        await peer.send(PingResp())
    assert isinstance(packet, Publish)
    await peer.send(PubAck(packet.packet_id))


async def test_on_receipt_settles_what_has_a_place(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, ack="on_receipt", buffer_count_max=2) as subscription:
            await peer.send(*(publish("a", number) for number in (1, 2, 3, 4)))
            await peer.settled(1, 2)
            await peer.silence()
            await subscription.receive()
            await peer.settled(3)
            await subscription.receive()
            await peer.settled(4)
            nursery.start_soon(peer.let_go)


async def test_on_receipt_settles_what_moves_up_into_the_place_of_one_that_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, ack="on_receipt", buffer_count_max=1) as subscription:
            await peer.send(publish("a", 1, qos=0), publish("a", 2))
            await peer.silence()
            await peer.send(publish("a", 3, qos=0))
            await peer.settled(2)
            assert [(await subscription.receive()).payload for _ in range(2)] == [b"2", b"3"]
            nursery.start_soon(peer.let_go)


async def test_a_task_that_asks_again_in_another_way_settles_too(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, keep=True) as subscription:
            await peer.send(*(publish("a", number) for number in (1, 2, 3, 4)))
            await subscription.receive()
            async for _ in subscription:
                await peer.settled(1)
                break
            async for _ in subscription:
                await peer.settled(2)
                break
            other = trio.Event()

            async def another_task() -> None:
                await subscription.__aiter__().__anext__()
                other.set()

            nursery.start_soon(another_task)
            await other.wait()
            await peer.silence()  # the third is this task's, and it has not asked again
        await peer.settled(3, 4)


async def test_manual_acknowledgement(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, ack="manual") as subscription:
            await peer.send(publish("a", 1), publish("a", 2), publish("a", 3))
            first, second, third = [await subscription.receive() for _ in range(3)]
            second.ack()
            second.ack()
            await peer.silence()
            first.ack()
            await peer.settled(1, 2)
            assert third.payload == b"3"
            nursery.start_soon(leave, peer, [PubAck(3, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)])


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_not_acknowledged_comes_again_in_the_next_scope(autojump_clock: trio.testing.MockClock, qos: int) -> None:
    """However the first one was left; and first, for it holds up the acknowledgements of all that came after it."""
    answer = PubAck if qos == 1 else PubRec
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        with pytest.raises(KeyError):  # noqa: PT012  # that is the point
            async with client.subscribe("a", qos=qos, ack="manual", keep=True) as subscription:
                await peer.send(*(publish("a", number, qos=qos) for number in (1, 2, 3)))
                first, second = [await subscription.receive() for _ in range(2)]
                second.ack()
                raise KeyError(first.topic)
        await peer.silence(5)
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=qos, ack="manual", keep=True) as subscription:
            assert [(await subscription.receive()).payload for _ in range(2)] == [b"1", b"3"]
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=qos, ack="manual", keep=True) as subscription:
            again = [await subscription.receive() for _ in range(2)]
            assert [message.payload for message in again] == [b"1", b"3"]
            again[0].ack()
            assert [await peer.receive() for _ in range(2)] == [answer(1), answer(2)]
            first.ack()  # by whoever has it still: it is done
            again[1].ack()
            assert await peer.receive() == answer(3)
        await peer.silence()


async def test_what_is_acknowledged_after_its_scope_does_not_come_again(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, ack="manual", keep=True) as subscription:
            await peer.send(publish("a", 1), publish("a", 2))
            first, second = [await subscription.receive() for _ in range(2)]
        first.ack()
        await peer.settled(1)
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, ack="manual", keep=True) as subscription:
            assert await subscription.receive() is second
            second.ack()
            await peer.settled(2)
            with pytest.raises(trio.WouldBlock):
                subscription.receive_nowait()
        with pytest.raises(trio.WouldBlock):
            client.unclaimed.receive_nowait()


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_is_in_hand_when_the_connection_breaks_comes_once_and_is_acknowledged_on_the_next(
    autojump_clock: trio.testing.MockClock, qos: int
) -> None:
    answer = PubAck if qos == 1 else PubRec
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery:
        peers: list[Peer] = []

        async def serve(present: bool) -> None:
            peers.append(await broker.next())
            await peers[-1].accept(session_present=present)

        nursery.start_soon(serve, False)
        async with connect(broker, client_id="me", session_expiry_s=60, keep_alive_s=0, reconnect=Reconnect(delay_s=0)) as client:
            (peer,) = peers
            nursery.start_soon(peer.grant)
            async with client.subscribe("a", qos=qos, ack="manual", keep=True) as subscription:
                sent = [publish("a", number, qos=qos) for number in (1, 2)]
                await peer.send(*sent)
                first, second = [await subscription.receive() for _ in range(2)]
                await peer.cut()
                await serve(True)
                peer = peers[-1]
                second.ack()
                await peer.send(*[structs.replace(one, dup=True) for one in sent])
                await peer.silence()
                first.ack()
                assert [await peer.receive() for _ in range(2)] == [answer(1), answer(2)]
                with pytest.raises(trio.WouldBlock):
                    subscription.receive_nowait()
            peer.ended.set()


async def test_ack_belongs_to_manual_subscriptions(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1) as subscription:
            await peer.send(publish("a", 1), publish("a", 2, qos=0))
            with pytest.raises(RuntimeError):
                (await subscription.receive()).ack()
            nursery.start_soon(leave, peer, [PubAck(1)])
            (await subscription.receive()).ack()  # QoS 0: nothing to do


async def test_overlap_is_settled_when_all_have_settled(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a/#", qos=1) as wide:
            nursery.start_soon(peer.grant)
            async with client.subscribe("a/b", qos=1) as narrow:
                await peer.send(publish("a/b", 1, ids=(1, 2)))
                assert (await wide.receive()).payload == (await narrow.receive()).payload == b"1"
                with trio.move_on_after(1):
                    await wide.receive()
                await peer.silence()
                with trio.move_on_after(1):
                    await narrow.receive()
                await peer.settled(1)
                nursery.start_soon(two_leave, peer)


async def test_clones_get_each_message_and_iterators_share(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a") as subscription:
            clone = subscription.clone()
            seen: dict[str, list[bytes]] = {"one": [], "two": [], "clone": []}

            async def take(name: str, source: Any) -> None:
                async for message in source:
                    seen[name].append(message.payload)
                    await trio.sleep(1)

            nursery.start_soon(take, "one", subscription)
            nursery.start_soon(take, "two", subscription)
            nursery.start_soon(take, "clone", clone)
            await peer.send(*(publish("a", number, qos=0) for number in range(6)))
            await trio.sleep(10)
            nursery.start_soon(peer.let_go)
        assert sorted(seen["one"] + seen["two"]) == [b"0", b"1", b"2", b"3", b"4", b"5"]
        assert len(seen["one"]) == len(seen["two"]) == 3
        assert seen["clone"] == [b"0", b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize(
    ("overflow", "left", "dropped"),
    [("drop-oldest", [b"2", b"3"], 2), ("drop-newest", [b"0", b"1"], 2), ("refuse", [b"0", b"1"], 2), ("latest", [b"2", b"3"], 2)],
)
async def test_overflow_of_qos_0(autojump_clock: trio.testing.MockClock, overflow: Any, left: list[bytes], dropped: int) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a/#", buffer_count_max=2, overflow=overflow) as subscription:
            await peer.send(*(publish(f"a/{number % 2}", number, qos=0) for number in range(4)))
            await settle_at()
            assert [(await subscription.receive()).payload for _ in range(2)] == left
            assert subscription.statistics()["dropped"] == dropped
            nursery.start_soon(peer.let_go)


async def test_overflow_disconnect(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", buffer_count_max=1, overflow="disconnect"):
            await peer.send(publish("a", 1, qos=0), publish("a", 2, qos=0))
            assert await peer.receive() == Disconnect(ReasonCode.QUOTA_EXCEEDED)
            await peer.cut()


async def test_unclaimed_messages_wait_for_their_subscription(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(clean_start=False) as (client, peer, _), trio.open_nursery() as nursery:
        await peer.send(publish("a", 1, ids=(77,)), publish("b", 2, ids=()), publish("c", 3, ids=()))
        await peer.silence(5)
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, keep=True) as subscription:
            assert (await subscription.receive()).payload == b"1"
        await peer.settled(1)
        assert (await client.unclaimed.receive()).payload == b"2"
        with trio.move_on_after(60):
            await client.unclaimed.receive()  # settles 2, and takes 3 too
        await peer.settled(2)
        await peer.silence(60)


async def test_unclaimed_messages_are_refused_after_the_grace(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(unclaimed_grace_s=7) as (client, peer, _):
        start = trio.current_time()
        await peer.send(publish("a", 1, ids=()))
        assert await peer.receive() == PubAck(1, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
        assert trio.current_time() - start == pytest.approx(7)
        assert client.statistics()["unclaimed_refused"] == 1
        assert "nobody subscribed to 'a'" in caplog.text


async def test_what_was_unsubscribed_from_needs_no_grace(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        refused = ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
        nursery.start_soon(peer.grant)
        with trio.CancelScope() as scope:
            async with client.subscribe("a", "b", qos=1, keep=True) as subscription:
                await peer.send(publish("a", 1), publish("b", 2), publish("a", 3))
                await subscription.receive()
                await settle_at()
                scope.cancel()
                await trio.sleep_forever()
        await peer.silence(5)
        start = trio.current_time()
        nursery.start_soon(peer.let_go)
        await client.unsubscribe("a")
        assert await peer.receive() == PubAck(1, refused)  # that in hand, which would be kept for ever
        await peer.silence(1)  # b is kept, and its message holds up what is behind it
        nursery.start_soon(peer.let_go)
        await client.unsubscribe("b")
        assert [await peer.receive() for _ in range(2)] == [PubAck(2, refused), PubAck(3, refused)]
        for number in range(4, 8):  # what the broker had queued
            await peer.send(publish("ab"[number % 2], number))
            assert await peer.receive() == PubAck(number, refused)
        assert trio.current_time() - start == pytest.approx(1)
        assert client.statistics()["refused_messages"] == 7


async def test_a_kept_scope_that_was_unsubscribed_from_keeps_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", "b", qos=1, keep=True):
            nursery.start_soon(peer.let_go)
            await client.unsubscribe("a")
            await peer.send(publish("a", 1), publish("b", 2))
            await settle_at()
        assert await peer.receive() == PubAck(1, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
        await peer.silence(9)


async def test_what_a_cancelled_subscribe_brings_needs_no_grace(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _):
        with trio.move_on_after(1):
            async with client.subscribe("a", qos=1):
                pytest.fail("entered")
        await peer.expect(Subscribe)
        await peer.expect(Unsubscribe)
        await peer.send(publish("a", 1))
        with trio.fail_after(1):
            assert await peer.receive() == PubAck(1, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)


async def test_without_identifiers_what_was_left_needs_no_grace(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(version="3.1.1") as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a/b", qos=1, keep=True):
            pass
        nursery.start_soon(peer.grant)
        async with client.subscribe("a/#", qos=1):
            nursery.start_soon(peer.let_go)
        await peer.send(publish("a/c", 1, ids=()))
        with trio.fail_after(1):
            assert await peer.receive() == PubAck(1)
        await peer.send(publish("a/b", 2, ids=()))
        await peer.silence(9)  # it may be for the other filter


async def test_an_identifier_of_an_earlier_program_is_not_ours(autojump_clock: trio.testing.MockClock) -> None:
    """Its first subscription and our first have the same number; the messages of its own are still to come."""
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery:
        peers: list[Peer] = []

        async def serve() -> None:
            peers.append(await broker.next())
            await peers[0].accept(session_present=True)

        nursery.start_soon(serve)
        async with connect(broker, client_id="me", clean_start=False, session_expiry_s=60, keep_alive_s=0) as client:
            (peer,) = peers
            try:
                nursery.start_soon(peer.grant)
                async with client.subscribe("state"):
                    nursery.start_soon(peer.let_go)
                nursery.start_soon(peer.grant)
                await peer.send(publish("jobs", 1))
                async with client.subscribe("jobs", qos=1, keep=True) as subscription:
                    await peer.send(publish("jobs", 2))
                    with trio.fail_after(1):
                        assert [(await subscription.receive()).payload for _ in range(2)] == [b"1", b"2"]
                await peer.settled(1, 2)
            finally:
                peer.ended.set()


async def test_without_identifiers_filters_are_matched_here(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(version="3.1.1") as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a/+", qos=1) as one:
            nursery.start_soon(peer.grant)
            async with client.subscribe("a/#") as two:
                await peer.send(publish("a/b", 1, ids=()), publish("a", 2, qos=0, ids=()))
                assert (await one.receive()).payload == b"1"
                assert [(await two.receive()).payload for _ in range(2)] == [b"1", b"2"]
                await peer.silence()
                nursery.start_soon(peer.let_go)
            nursery.start_soon(leave, peer, [PubAck(1)])


async def test_refused_subscription(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant, 0, 0x87)
        with pytest.raises(SubscribeRefused) as caught:
            async with client.subscribe("a", "b"):
                pytest.fail("entered")
        assert (caught.value.filter, caught.value.reason) == ("b", ReasonCode.NOT_AUTHORIZED)
        assert (await peer.expect(Unsubscribe)).filters == ("a",)


async def test_subscribing_twice(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", keep=True):
            with pytest.raises(SubscriptionExists):
                async with client.subscribe("a"):
                    pytest.fail("entered")
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", keep=True):
            pass


async def test_cancelled_subscribe_withdraws(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _):
        with trio.move_on_after(1):
            async with client.subscribe("a"):
                pytest.fail("entered")
        asked = await peer.expect(Subscribe)
        assert (await peer.expect(Unsubscribe)).filters == ("a",)
        await peer.send(SubAck(asked.packet_id, (ReasonCode.SUCCESS,)))
        await settle_at()
        assert asked.packet_id not in client.core.sender.reserved
        with trio.move_on_after(1):
            async with client.subscribe("a"):  # the filter is free again
                pytest.fail("entered")


async def test_a_subscribe_that_was_cut_off_and_then_cancelled_is_undone(autojump_clock: trio.testing.MockClock) -> None:
    """The broker may have granted it before the connection was lost."""
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery, connect_twice(broker, nursery) as (client, peers):
        scope = trio.CancelScope()

        async def subscribe() -> None:
            with scope:
                async with client.subscribe("a", qos=1):
                    pytest.fail("entered")

        nursery.start_soon(subscribe)
        await peers[0].expect(Subscribe)
        await peers[0].cut()
        await settle_at()
        scope.cancel()
        await settle_at()
        await peers[1].accept(session_present=True)
        assert (await peers[1].let_go()).filters == ("a",)
        await settle_at()
        assert client.core.idle


@asynccontextmanager
async def connect_twice(broker: ScriptedBroker, nursery: trio.Nursery) -> AsyncIterator[tuple[Client, list[Peer]]]:
    """A client whose first connection stands; the second one is dialled when that is lost, and its CONNECT is the caller's to answer."""
    peers: list[Peer] = []

    async def serve() -> None:
        peers.append(await broker.next())
        await peers[0].accept()
        peers.append(await broker.next())

    nursery.start_soon(serve)
    async with connect(broker, client_id="me", session_expiry_s=60, keep_alive_s=0, reconnect=Reconnect(delay_s=0)) as client:
        try:
            yield client, peers
        finally:
            for peer in peers:
                peer.ended.set()


async def test_groups(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        with pytest.raises(ValueError):
            client.subscribe("a", group="g", no_local=True)
        with pytest.raises(InvalidTopic):
            client.subscribe("a", group="g+")
        asked: list[Subscribe] = []

        async def serve() -> None:
            asked.append(await peer.grant())

        nursery.start_soon(serve)
        async with client.subscribe("a/+", group="g", keep=True) as subscription:
            await peer.send(publish("a/b", 1, qos=0))
            assert (await subscription.receive()).payload == b"1"
        assert asked[0].subscriptions[0].filter == "$share/g/a/+"


async def test_wrong_calls(autojump_clock: trio.testing.MockClock) -> None:
    unable = Properties(wildcard_subscription_available=0, shared_subscription_available=0, subscription_identifier_available=0)
    async with connected(unable) as (client, peer, _), trio.open_nursery() as nursery:
        wrong: list[tuple[tuple[str, ...], dict[str, Any], type[Exception]]] = [
            ((), {}, ValueError),
            (("a", "a"), {}, ValueError),
            (("a#",), {}, InvalidTopic),
            (("a",), {"qos": 3}, ValueError),
            (("a",), {"retained": "always"}, ValueError),
            (("a",), {"ack": "never"}, ValueError),
            (("a",), {"overflow": "explode"}, ValueError),
            (("a",), {"buffer_count_max": 0}, ValueError),
            (("a",), {"identifier": 5}, NotSupported),
        ]
        for filters, options, error in wrong:
            with pytest.raises(error):
                client.subscribe(*filters, **options)
        for filter in "a/#", "$share/g/a":
            with pytest.raises(NotSupported):
                async with client.subscribe(filter):
                    pytest.fail("entered")
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", keep=True) as subscription:  # matched here
            await peer.send(publish("a", 1, qos=0, ids=()))
            assert (await subscription.receive()).payload == b"1"


async def test_what_a_message_says(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", keep=True) as subscription:
            properties = Properties(
                payload_format_indicator=1,
                message_expiry_interval=60,
                content_type="application/json",
                response_topic="r",
                correlation_data=b"c",
                subscription_identifiers=(1,),
                user_properties=(("k", "1"), ("k", "2")),
            )
            await peer.send(Publish("a", b'{"x": 1}', 2, True, packet_id=9, properties=properties))
            message = await subscription.receive()
        assert isinstance(message, Message)
        assert (message.topic, message.payload, message.qos, message.retain, message.dup) == ("a", b'{"x": 1}', 2, True, False)
        assert (message.content_type, message.response_topic, message.correlation_data) == ("application/json", "r", b"c")
        assert (message.message_expiry_s, message.payload_is_text, message.user_properties) == (60, True, (("k", "1"), ("k", "2")))
        assert (message.subscription_identifiers, message.packet_id, message.text, message.json()) == ((1,), 9, '{"x": 1}', {"x": 1})
        assert message.received_at > 1.5e9
        with pytest.raises(AttributeError):
            message.topic = "b"  # type: ignore[misc]


async def test_too_many_messages_from_the_broker(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(receive_maximum=2) as (client, peer, _):
        await peer.send(publish("a", 1), publish("a", 2), publish("a", 3))
        assert await peer.receive() == Disconnect(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)
        await peer.cut()
        assert client.statistics()["received"] == 2


async def test_topic_aliases_from_the_broker(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("long/name", keep=True) as subscription:
            await peer.send(
                Publish("long/name", b"1", properties=Properties(topic_alias=16)), Publish("", b"2", properties=Properties(topic_alias=16))
            )
            assert [(await subscription.receive()).topic for _ in range(2)] == ["long/name", "long/name"]
            await peer.send(Publish("", b"3", properties=Properties(topic_alias=17)))
            assert await peer.receive() == Disconnect(ReasonCode.TOPIC_ALIAS_INVALID)
            await peer.cut()


async def test_a_kept_subscription_stays_where_the_wait_for_its_grant_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """An earlier run may have made it, and this program ended while it started."""
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            async with client.subscribe("a", qos=1, keep=True):
                pytest.fail("entered")
        asked = await peer.expect(Subscribe)
        await peer.send(SubAck(asked.packet_id, (ReasonCode.GRANTED_QOS_1,)), publish("a", 1))
        await peer.silence(5)
        assert set(client.core.subscriptions) == {"a"}
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=1, keep=True) as subscription:
            assert (await subscription.receive()).payload == b"1"
        await peer.settled(1)
