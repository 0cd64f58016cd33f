"""Publishing, and what a lost connection, a lost Session or an impatient caller makes of it; requests and their answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from broker.client import Client, Reconnect, connect
from broker.client.publishing import new_publish
from broker.errors import ConnectionLost, DeliveryUnknown, InvalidTopic, MessageExpired, NotSupported, Offline, PublishRefused
from broker.messages import Version
from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, Properties, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe, UnsubAck, Unsubscribe
from tests.client.scripted import Peer, ScriptedBroker, connected

blocked = trio.testing.wait_all_tasks_blocked


class Outcome:
    """A call in the background, and how it ended."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        nursery.start_soon(self._run, call, args, options)

    async def _run(self, call: Callable[..., Awaitable[Any]], args: Any, options: Any) -> None:
        try:
            with self.scope:
                self.result = await call(*args, **options)
        except Exception as error:
            self.error = error
        self.done.set()


async def test_each_qos_ends_with_its_handshake(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        assert await client.publish("a", "é", content_type="t", user_properties={"k": "v"}, message_expiry_s=5, payload_is_text=True) == 0
        properties = Properties(content_type="t", user_properties=(("k", "v"),), message_expiry_interval=5, payload_format_indicator=1)
        assert await peer.receive() == Publish("a", "é".encode(), properties=properties)

        one = Outcome(nursery, client.publish, "b", bytearray(b"x"), qos=1, retain=True)
        assert await peer.receive() == Publish("b", b"x", 1, True, packet_id=1)
        await blocked()
        assert not one.done.is_set()
        await peer.send(PubAck(1, ReasonCode.NO_MATCHING_SUBSCRIBERS))
        await one.done.wait()
        assert one.result == ReasonCode.NO_MATCHING_SUBSCRIBERS

        two = Outcome(nursery, client.publish, "c", qos=2)
        assert await peer.receive() == Publish("c", b"", 2, packet_id=2)
        await peer.send(PubRec(2))
        assert await peer.receive() == PubRel(2)
        await blocked()
        assert not two.done.is_set()
        await peer.send(PubComp(2))
        await two.done.wait()
        assert two.result == ReasonCode.SUCCESS


@pytest.mark.parametrize("qos", [1, 2])
async def test_refused(autojump_clock: trio.testing.MockClock, qos: int) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        outcome = Outcome(nursery, client.publish, "a", qos=qos)
        packet = await peer.expect(Publish)
        await peer.send((PubAck if qos == 1 else PubRec)(packet.packet_id, ReasonCode.QUOTA_EXCEEDED))
        await outcome.done.wait()
        assert isinstance(outcome.error, PublishRefused)
        assert outcome.error.reason == ReasonCode.QUOTA_EXCEEDED
        assert client.core.outgoing_count == 0


async def test_what_the_broker_cannot_do_is_not_sent(autojump_clock: trio.testing.MockClock) -> None:
    unable = Properties(maximum_qos=1, retain_available=0, maximum_packet_size=20)
    async with connected(unable) as (client, peer, _):
        for options in {"qos": 2}, {"retain": True}, {"topic_alias": 1}:
            with pytest.raises(NotSupported):
                await client.publish("a", **options)
        with pytest.raises(PublishRefused) as caught:
            await client.publish("a", bytes(20), qos=1)
        assert caught.value.reason == ReasonCode.PACKET_TOO_LARGE
        for topic in "a/#", "", "a\0":
            with pytest.raises(InvalidTopic):
                await client.publish(topic)
        with pytest.raises(ValueError):
            await client.publish("a", content_type="x" * 70_000)
        with pytest.raises(TypeError):
            await client.publish("a", 5)  # type: ignore[arg-type]
        await client.publish("a", b"", qos=0)
        assert await peer.receive() == Publish("a")


async def test_3_1_1_has_no_properties(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(version="3.1.1") as (client, _, _broker):
        with pytest.raises(NotSupported):
            await client.publish("a", content_type="t")
        with pytest.raises(NotSupported):
            await client.request("a")


async def test_receive_maximum_of_the_broker(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(Properties(receive_maximum=2)) as (client, peer, _), trio.open_nursery() as nursery:
        outcomes = []
        for number in range(4):
            outcomes.append(Outcome(nursery, client.publish, "a", str(number), qos=1))
            await blocked()
        assert [(await peer.expect(Publish)).payload for _ in range(2)] == [b"0", b"1"]
        await peer.silence()
        await client.publish("a", b"QoS 0 goes on")
        assert (await peer.expect(Publish)).qos == 0
        await peer.send(PubAck(1))
        assert (await peer.expect(Publish)).payload == b"2"
        await peer.send(PubAck(2))
        last = await peer.expect(Publish)
        await peer.send(PubAck(3), PubAck(last.packet_id))
        for outcome in outcomes:
            await outcome.done.wait()


async def test_the_outgoing_window_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(outgoing_count_max=1) as (client, peer, _), trio.open_nursery() as nursery:
        one = Outcome(nursery, client.publish, "a", b"1", qos=1)
        await blocked()
        two = Outcome(nursery, client.publish, "a", b"2", qos=1)
        await peer.expect(Publish)
        await peer.silence()
        two.scope.cancel()
        await two.done.wait()
        await peer.send(PubAck(1))
        await one.done.wait()
        await peer.silence()
        assert client.core.outgoing_count == 0


async def test_aliases_of_ours(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(Properties(topic_alias_maximum=1)) as (client, peer, _):
        for _ in range(2):
            await client.publish("long/name", b"x", topic_alias=1)
        assert await peer.receive() == Publish("long/name", b"x", properties=Properties(topic_alias=1))
        assert await peer.receive() == Publish("", b"x", properties=Properties(topic_alias=1))
        with pytest.raises(NotSupported):
            await client.publish("a", topic_alias=2)


# ---- cancelled --------------------------------------------------------------------------------------------------------


async def test_cancelled_before_it_left(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(Properties(receive_maximum=1)) as (client, peer, _), trio.open_nursery() as nursery:
        first = Outcome(nursery, client.publish, "a", b"1", qos=1)
        await blocked()
        second = Outcome(nursery, client.publish, "a", b"2", qos=2)
        await blocked()
        second.scope.cancel()
        await second.done.wait()
        assert (await peer.expect(Publish)).payload == b"1"
        await peer.send(PubAck(1))
        await first.done.wait()
        await peer.silence()
        assert client.core.outgoing_count == 0


async def test_cancelled_after_it_left(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _):
        with trio.move_on_after(1) as scope:
            await client.publish("a", qos=2)
        assert scope.cancelled_caught
        await peer.expect(Publish)
        assert client.core.sender.count == 1
        await peer.send(PubRec(1))
        assert await peer.receive() == PubRel(1)
        await peer.send(PubComp(1))
        await blocked()
        assert client.core.outgoing_count == 0


# ---- away -------------------------------------------------------------------------------------------------------------


def quick() -> Reconnect:
    return Reconnect(delay_s=0)


async def away(client: Client, peer: Peer) -> None:
    await peer.cut()
    await blocked()
    assert not client.connected


async def test_what_was_to_be_dropped_is_counted_so_where_the_connection_breaks_first(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=Reconnect(delay_s=5)) as (client, peer, _), trio.open_nursery() as nursery:
        for _ in range(4):  # more than a batch of bytes: the last of them are never sent
            nursery.start_soon(partial(client.publish, "a", bytes(60_000), offline="drop"))
        await blocked()
        assert client.statistics()["published"] == 0
        await away(client, peer)
        counts = client.statistics()
        assert counts["dropped_offline"] >= 1
        assert counts["published"] + counts["dropped_offline"] == 4


async def test_nothing_waits_that_is_not_to_when_the_connection_goes_while_it_has_its_turn(autojump_clock: trio.testing.MockClock) -> None:
    """`publish` looked whether there is a connection, then gave others their turn, and never looked again."""
    async with connected(reconnect=Reconnect(delay_s=5)) as (client, _, _):
        publish = new_publish("a", b"", 0, False)
        client.core.connection_lost(trio.current_time())
        publisher = client._driver.publisher
        raised = await publisher.begin(publish, offline="raise")
        with pytest.raises(Offline):
            publisher.outcome(raised)
        assert publisher.outcome(await publisher.begin(publish, offline="drop")) == ReasonCode.SUCCESS
        assert client.statistics()["dropped_offline"] == 1


async def test_qos_0_while_away(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=Reconnect(delay_s=5)) as (client, peer, broker), trio.open_nursery() as nursery:
        await away(client, peer)
        with pytest.raises(Offline):
            await client.publish("a", offline="raise")
        assert await client.publish("a", offline="drop") == ReasonCode.SUCCESS
        assert client.statistics()["dropped_offline"] == 1
        waiting = Outcome(nursery, client.publish, "a", b"waited")
        peer = await broker.next()
        await peer.accept()
        assert await peer.receive() == Publish("a", b"waited")
        await waiting.done.wait()
        await peer.cut()


async def test_resumed_session_repeats_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=quick(), session_expiry_s=60) as (client, peer, broker), trio.open_nursery() as nursery:
        outcomes = [Outcome(nursery, client.publish, "r", qos=2)]
        await peer.expect(Publish)
        await peer.send(PubRec(1))
        await peer.expect(PubRel)
        for number, qos in enumerate((1, 2, 1)):
            outcomes.append(Outcome(nursery, client.publish, "a", str(number), qos=qos))
            await peer.expect(Publish)
        await away(client, peer)
        outcomes.append(Outcome(nursery, client.publish, "a", b"while away", qos=1))
        peer = await broker.next()
        asked = await peer.accept(session_present=True)
        assert not asked.clean_start
        assert await peer.receive() == PubRel(1)
        assert [await peer.receive() for _ in range(4)] == [
            Publish("a", b"0", 1, dup=True, packet_id=2),
            Publish("a", b"1", 2, dup=True, packet_id=3),
            Publish("a", b"2", 1, dup=True, packet_id=4),
            Publish("a", b"while away", 1, packet_id=5),
        ]
        await peer.send(PubComp(1), PubAck(2), PubRec(3), PubAck(4), PubAck(5))
        assert await peer.receive() == PubRel(3)
        await peer.send(PubComp(3))
        for outcome in outcomes:
            await outcome.done.wait()
            assert outcome.result == ReasonCode.SUCCESS
        assert client.session_present
        await peer.cut()


async def test_lost_session(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=quick()) as (client, peer, broker), trio.open_nursery() as nursery:
        released = Outcome(nursery, client.publish, "r", qos=2)
        await peer.expect(Publish)
        await peer.send(PubRec(1))
        await peer.expect(PubRel)
        one = Outcome(nursery, client.publish, "a", b"1", qos=1)
        await peer.expect(Publish)
        two = Outcome(nursery, client.publish, "a", b"2", qos=2)
        await peer.expect(Publish)
        await away(client, peer)
        peer = await broker.next()
        await peer.accept(session_present=False)
        await two.done.wait()
        assert isinstance(two.error, DeliveryUnknown)
        await released.done.wait()
        assert released.result == ReasonCode.SUCCESS
        again = await peer.expect(Publish)
        assert (again.payload, again.dup) == (b"1", False)
        await peer.send(PubAck(again.packet_id))
        await one.done.wait()
        assert one.result == ReasonCode.SUCCESS
        assert client.core.outgoing_count == 0
        await peer.cut()


async def test_subscriptions_are_made_again_only_when_the_session_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=quick(), session_expiry_s=60) as (client, peer, broker), trio.open_nursery() as nursery:
        news = client.connections()
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", "b", qos=1, keep=True) as subscription:
            await away(client, peer)
            peer = await broker.next()
            await peer.accept(session_present=True)
            await peer.send(Publish("a", b"1", properties=Properties(subscription_identifiers=(1,))))
            assert (await subscription.receive()).payload == b"1"
            await away(client, peer)
            peer = await broker.next()
            await peer.accept()
            asked = await peer.grant(0, 1)
            assert [request.filter for request in asked.subscriptions] == ["a", "b"]
            assert asked.properties.subscription_identifiers == (1,)
            await blocked()
            assert subscription.granted == (0, 1)
            assert [await anext(news) for _ in range(4)] == ["lost", "resumed", "lost", "connected"]
            await peer.cut()


async def test_a_message_in_hand_is_not_given_twice_on_resume(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=quick(), session_expiry_s=60) as (client, peer, broker), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a", qos=2, keep=True) as subscription:
            properties = Properties(subscription_identifiers=(1,))
            first = Publish("a", b"1", 2, packet_id=1, properties=properties)
            second = Publish("a", b"2", 1, packet_id=2, properties=properties)
            await peer.send(first, second)
            assert (await subscription.receive()).payload == b"1"
            await away(client, peer)
            peer = await broker.next()
            await peer.accept(session_present=True)
            await peer.send(Publish("a", b"1", 2, dup=True, packet_id=1, properties=properties))
            await peer.send(Publish("a", b"2", 1, dup=True, packet_id=2, properties=properties))
            await peer.silence()
            assert (await subscription.receive()).payload == b"2"
            assert await peer.receive() == PubRec(1)
            with trio.move_on_after(1):
                await subscription.receive()
            assert await peer.receive() == PubAck(2)
            await peer.cut()


async def test_a_lost_unsubscribe_is_said_again(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=quick(), session_expiry_s=60) as (client, peer, broker), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("a"):
            await away(client, peer)
        peer = await broker.next()
        await peer.accept(session_present=True)
        assert (await peer.expect(Unsubscribe)).filters == ("a",)
        await peer.cut()


async def test_wait_connected(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(reconnect=quick()) as (client, peer, broker), trio.open_nursery() as nursery:
        await client.wait_connected()
        await away(client, peer)
        waiting = Outcome(nursery, client.wait_connected)
        await blocked()
        assert not waiting.done.is_set()
        peer = await broker.next()
        await peer.accept()
        await waiting.done.wait()
        await peer.cut()


async def test_publishes_of_others_end_with_the_client(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with connected(close_grace_s=1) as (client, _, _broker):
            outcome = Outcome(nursery, client.publish, "a", qos=1)
            await blocked()
        await outcome.done.wait()
        assert isinstance(outcome.error, ConnectionLost)


# ---- requests ---------------------------------------------------------------------------------------------------------


async def test_request_and_reply(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(Properties(response_information="answers"), receive_maximum=1) as (client, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        async with client.subscribe("work", qos=1, keep=True) as slow:
            work = Properties(response_topic="x/y", correlation_data=b"c", subscription_identifiers=(1,))
            await peer.send(Publish("work", b"", 1, packet_id=9, properties=work))
            stuck = await slow.receive()  # Receive Maximum is used up, and the loop is slow

            question = Outcome(nursery, client.request, "ask", b"?")
            asked = await peer.grant()
            assert [(one.filter, one.qos) for one in asked.subscriptions] == [("answers/me", 0)]
            sent = await peer.expect(Publish)
            assert sent.properties.response_topic == "answers/me"
            await peer.send(PubAck(sent.packet_id))
            answer = Publish("answers/me", b"!", properties=Properties(correlation_data=sent.properties.correlation_data))
            await peer.send(Publish("answers/me", b"wrong", properties=Properties(correlation_data=b"other")), answer, answer)
            await question.done.wait()
            assert question.result.payload == b"!"
            await blocked()
            assert client.statistics()["late_answers"] == 2

            reply = Outcome(nursery, client.reply, stuck, b"done", qos=0)
            assert await peer.receive() == Publish("x/y", b"done", properties=Properties(correlation_data=b"c"))
            await reply.done.wait()
            with pytest.raises(ValueError):
                await client.reply(question.result)

            again = Outcome(nursery, client.request, "ask", qos=1)  # no second SUBSCRIBE
            sent = await peer.expect(Publish)
            await peer.send(PubAck(sent.packet_id, ReasonCode.NO_MATCHING_SUBSCRIBERS))
            await again.done.wait()
            assert isinstance(again.error, PublishRefused)
        await peer.cut()


async def test_a_response_topic_of_ones_own_is_left_again(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        question = Outcome(nursery, client.request, "ask", response_topic="mine", qos=0)
        assert (await peer.grant()).subscriptions[0].filter == "mine"
        sent = await peer.expect(Publish)
        await peer.send(Publish("mine", b"!", properties=Properties(correlation_data=sent.properties.correlation_data)))
        await question.done.wait()
        assert (await peer.expect(Unsubscribe)).filters == ("mine",)
        await peer.cut()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_request_given_up_before_its_suback_leaves_the_topic_that_the_program_chose(
    autojump_clock: trio.testing.MockClock, answered: bool
) -> None:
    async with connected() as (client, peer, _):
        with trio.move_on_after(1):
            await client.request("ask", response_topic="here")
        subscribe = await peer.expect(Subscribe)
        if answered:
            await answer_subscribe(peer, subscribe)
        with trio.fail_after(60):
            assert (await peer.expect(Unsubscribe)).filters == ("here",)
        await peer.cut()


# ---- cancelled at each await ------------------------------------------------------------------------------------------


async def everything(client: Client) -> None:
    async with client.subscribe("a", qos=1) as subscription:
        await client.publish("a", b"1", qos=1)
        await subscription.receive()
        await client.publish("a", b"2", qos=2)
        await client.request("ask", qos=1)


async def serve(peer: Peer, packets_max: int) -> None:
    """Answer so many packets as a broker would; then hang."""
    for _ in range(packets_max):
        packet = await peer.receive()
        if isinstance(packet, Connect):
            raise AssertionError("a second CONNECT")
        if isinstance(packet, Publish):
            if packet.topic == "ask":
                await peer.send(Publish("reply/me", b"", properties=Properties(correlation_data=packet.properties.correlation_data)))
            elif packet.qos == 1:
                await peer.send(Publish("a", b"", 1, packet_id=7, properties=Properties(subscription_identifiers=(1,))))
            await peer.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
        elif isinstance(packet, PubRel):
            await peer.send(PubComp(packet.packet_id))
        elif isinstance(packet, Subscribe):
            await answer_subscribe(peer, packet)
        elif isinstance(packet, Unsubscribe):
            await answer_unsubscribe(peer, packet)
        elif packet is None or isinstance(packet, Disconnect):
            return


async def answer_subscribe(peer: Peer, packet: Subscribe) -> None:
    await peer.send(SubAck(packet.packet_id, tuple(ReasonCode(request.qos) for request in packet.subscriptions)))


async def answer_unsubscribe(peer: Peer, packet: Unsubscribe) -> None:
    await peer.send(UnsubAck(packet.packet_id, (ReasonCode.SUCCESS,) * len(packet.filters)))


STEPS = 8  # packets that `everything` makes the client send


@pytest.mark.parametrize("answered", range(STEPS + 1))
async def test_cancelled_while_the_broker_hangs_at_each_step(autojump_clock: trio.testing.MockClock, answered: int) -> None:
    """Whatever the caller waits for when it is cancelled, nothing of it stays once the broker has caught up."""
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        with trio.move_on_after(10) as scope:
            nursery.start_soon(serve, peer, answered)
            await everything(client)
        assert scope.cancelled_caught == (answered < STEPS)
        nursery.start_soon(serve, peer, 100)
        await trio.sleep(20)
        assert client.core.outgoing_count == 0
        assert not client.core.sender.reserved
        assert client.core.idle
        assert client.statistics()["unsettled"] == 0
        async with client.subscribe("a"):  # the filter is free
            pass
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answered", range(STEPS + 2))
async def test_the_whole_client_cancelled_at_each_step(autojump_clock: trio.testing.MockClock, answered: int) -> None:
    """Cancelled at any await, `connect` says goodbye at once and leaves no task behind."""
    broker = ScriptedBroker()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:

        async def play() -> None:
            peer = await broker.next()
            if answered == 0:
                await peer.receive()
            else:
                await peer.accept()
                await serve(peer, answered - 1)
            while await peer.receive() is not None:
                pass
            await peer.cut()

        nursery.start_soon(play)
        with trio.move_on_after(5):
            async with connect(broker, client_id="me", keep_alive_s=0) as client:
                await everything(client)
                await trio.sleep_forever()
        assert trio.current_time() <= 5.1
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_expired_while_away(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(100):
        async with connected(reconnect=Reconnect(delay_s=100, delay_s_max=100)) as (client, peer, _):
            await away(client, peer)
            began = trio.current_time()
            with pytest.raises(MessageExpired, match="its 7 s ended"):
                await client.publish("a", qos=1, message_expiry_s=7)
            assert trio.current_time() - began == pytest.approx(7)
            assert client.statistics()["expired"] == 1
            assert client.statistics()["outgoing"] == 0
            with trio.move_on_after(1):
                await client.disconnect()


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_ids_of_an_earlier_run_are_released_before_they_are_used_at_qos_2(version: Version, autojump_clock: trio.testing.MockClock) -> None:
    """The broker may hold them from a PUBREC that never left; once each, and not in a Session of this run's own."""
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery:

        async def serve(present: bool) -> None:
            peer = await broker.next()
            await peer.accept(session_present=present)
            assert (await peer.expect(Publish)).packet_id == 1
            await peer.send(PubAck(1))
            if present:
                assert await peer.receive() == PubRel(2)
                await peer.send(PubComp(2, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND))  # a late word, while its PUBREC is awaited
            assert (await peer.expect(Publish)).packet_id == 2
            await peer.send(PubRec(2))
            assert await peer.receive() == PubRel(2)
            await peer.cut()
            peer = await broker.next()  # it goes on where it was
            await peer.accept(session_present=True)
            assert await peer.receive() == PubRel(2)
            await peer.send(PubComp(2))
            await peer.expect(Disconnect)
            peer.ended.set()

        for present in (True, False):
            nursery.start_soon(serve, present)
            expiry: dict[str, Any] = {"session_expiry_s": 100} if version == "5.0" else {}
            async with connect(broker, client_id="c", clean_start=False, version=version, **expiry) as client:
                await client.publish("a", qos=1)
                await client.publish("b", qos=2)


async def test_who_waits_for_a_place_hears_that_there_will_be_none(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(outgoing_count_max=2) as (client, peer, _), trio.open_nursery() as nursery:
        told: list[str] = []

        async def publish() -> None:
            try:
                await client.publish("a", b"", qos=1)
            except ConnectionLost as error:
                told.append(str(error))

        for _ in range(5):
            nursery.start_soon(publish)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(client.disconnect)
        await trio.testing.wait_all_tasks_blocked()
        await peer.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["this client has disconnected"] * 5
