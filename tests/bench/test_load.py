"""A whole load: against our broker in memory, on a virtual clock, and against brokers that lose, double and shuffle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio

from broker import ConnectRefused, open_broker
from broker.bench.load import SHARE_S_MIN, Dial, Load, _Mark
from broker.bench.plan import Plan
from broker.bench.report import Result, figures, lines
from broker.errors import BrokerError, ConnectError, ConnectionLost, NotSupported, SubscribeRefused
from broker.net.dial import dial, parse_url
from broker.net.memory import MemoryStream, memory_stream_pair
from broker.net.transport import BROKEN
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
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
)

COUNTED = Plan(count=200, warmup_s=0, window=50, drain_s=1)


async def run_against_ours(plan: Plan) -> Result:
    async with open_broker() as hub, trio.open_nursery() as nursery:

        async def dial(_: trio.Nursery) -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(hub.attach, theirs)
            await trio.lowlevel.checkpoint()
            return ours

        return await Load(plan, dial, "memory").run()


def nothing_wrong(result: Result) -> None:
    assert result.delivered_count == result.expected_count > 0
    assert result.broken_promises() == []
    others = (result.lost_count, result.duplicated_count, result.out_of_order_count, result.foreign_count, result.unexpected_count)
    assert others == (0, 0, 0, 0, 0)


# ---- our broker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311, MQTT_31])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_message_arrives_once_and_in_order(version: int, qos: int, autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against_ours(replace(COUNTED, version=version, qos=qos))
    nothing_wrong(result)
    assert (result.published_count, result.delivered_count, result.effective_qos) == (200, 200, qos)
    assert result.latency.count == 200


@pytest.mark.parametrize(
    ("publishers", "subscribers", "topics", "deliveries"),
    [(3, 3, 3, 3), (1, 7, 1, 7), (5, 1, 1, 5), (4, 6, 2, 12), (3, 2, 12, 2), (2, 2, 11, 2)],
)
async def test_shapes(publishers: int, subscribers: int, topics: int, deliveries: int, autojump_clock: trio.testing.MockClock) -> None:
    plan = replace(COUNTED, publishers_count=publishers, subscribers_count=subscribers, topics_count=topics, count=100, qos=1)
    result = await run_against_ours(plan)
    nothing_wrong(result)
    assert (result.published_count, result.delivered_count) == (publishers * 100, deliveries * 100)


async def test_a_rate_is_kept_on_schedule(autojump_clock: trio.testing.MockClock) -> None:
    plan = Plan(publishers_count=4, subscribers_count=4, topics_count=4, rate=10, duration_s=60, warmup_s=10)
    result = await run_against_ours(plan)
    nothing_wrong(result)
    assert result.published_count == 700
    assert result.measured.published_count == pytest.approx(600, abs=1)
    assert result.measured.seconds == pytest.approx(60)
    assert result.latency.count == pytest.approx(600, abs=1)
    assert result.latency.maximum < 1_000_000  # on a virtual clock nothing takes time


async def test_properties_go_along(autojump_clock: trio.testing.MockClock) -> None:
    properties = Properties(content_type="text/plain", message_expiry_interval=60, user_properties=(("a", "b"),))
    nothing_wrong(await run_against_ours(replace(COUNTED, publish_properties=properties)))


async def test_large_payloads(autojump_clock: trio.testing.MockClock) -> None:
    nothing_wrong(await run_against_ours(replace(COUNTED, payload_bytes=200_000, count=5, window=2)))


async def test_nobody_need_listen(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against_ours(replace(COUNTED, subscribers_count=0, qos=1))
    assert (result.published_count, result.expected_count, result.broken_promises()) == (200, 0, [])


async def test_a_long_quiet_load_pings(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against_ours(Plan(rate=0.01, duration_s=1000, warmup_s=0, keep_alive_s=10))
    nothing_wrong(result)
    assert result.published_count == 10


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_over_websocket(qos: int) -> None:
    """Real sockets, and the tasks of the streams end with the load."""
    async with open_broker(listeners=["ws://127.0.0.1:0/mqtt"]) as hub:

        async def dial_one(keeper: trio.Nursery) -> trio.abc.Stream:
            return await dial(parse_url(hub.urls[0]), keeper=keeper)

        plan = replace(COUNTED, qos=qos, publishers_count=2, subscribers_count=3, drain_s=10)
        with trio.fail_after(20):
            result = await Load(plan, dial_one, hub.urls[0]).run()
        nothing_wrong(result)
        assert (result.published_count, result.delivered_count, result.effective_qos) == (400, 1200, qos)


async def test_over_websocket_the_broker_goes_away() -> None:
    async with open_broker(listeners=["ws://127.0.0.1:0/mqtt"]) as hub, trio.open_nursery() as nursery:
        connected = 0

        async def dial_one(keeper: trio.Nursery) -> trio.abc.Stream:
            nonlocal connected
            stream = await dial(parse_url(hub.urls[0]), keeper=keeper)
            connected += 1
            if connected == 2:
                nursery.start_soon(hub.shutdown)
            return stream

        with trio.fail_after(20), pytest.RaisesGroup(pytest.RaisesExc(BrokerError), flatten_subgroups=True):
            await Load(replace(COUNTED, rate=10), dial_one, hub.urls[0]).run()


# ---- brokers with faults ------------------------------------------------------------------------------------------

Mangle = Callable[[int, Publish], list[Publish]]


class Faulty:
    """Relays everything to every subscriber, as `mangle(number, message)` has it; granted and refused as told."""

    def __init__(self, mangle: Mangle, *, connack: ConnAck | None = None, granted: int | None = None, puback: ReasonCode | None = None) -> None:
        self.mangle = mangle
        self.connack = connack or ConnAck(False, ReasonCode.SUCCESS)
        self.granted = granted
        self.puback = puback
        self.subscribers: list[MemoryStream] = []
        self.locks: dict[MemoryStream, trio.Lock] = {}
        self.count = 0

    async def send(self, stream: MemoryStream, packet: Packet) -> None:
        async with self.locks.setdefault(stream, trio.Lock()):
            await stream.send_all(encode(packet, MQTT_5))

    async def serve(self, stream: MemoryStream) -> None:
        with suppress(*BROKEN):
            await self._serve(stream)

    async def _serve(self, stream: MemoryStream) -> None:
        decoder = FrameDecoder(1 << 20)
        async with stream:
            while data := await stream.receive_some():
                decoder.feed(bytes(data))
                while (frame := decoder.next_frame()) is not None:
                    packet = decode(*frame, MQTT_5)
                    if isinstance(packet, Disconnect):
                        return
                    await self.answer(stream, packet)

    async def answer(self, stream: MemoryStream, packet: Packet) -> None:
        match packet:
            case Connect():
                await self.send(stream, self.connack)
            case Subscribe():
                self.subscribers.append(stream)
                granted = packet.subscriptions[0].qos if self.granted is None else self.granted
                await self.send(stream, SubAck(packet.packet_id, (ReasonCode(granted),)))
            case PingReq():
                await self.send(stream, PingResp())
            case Publish():
                if packet.qos:
                    answer = PubAck(packet.packet_id, self.puback or ReasonCode.SUCCESS) if packet.qos == 1 else PubRec(packet.packet_id)
                    await self.send(stream, answer)
                for message in self.mangle(self.count, packet):
                    for subscriber in self.subscribers:
                        await self.send(subscriber, message)
                self.count += 1
            case PubRel():
                await self.send(stream, PubComp(packet.packet_id))
            case PubRec():
                await self.send(stream, PubRel(packet.packet_id))
            case _:
                pass


@asynccontextmanager
async def dialling(faulty: Faulty) -> AsyncIterator[Dial]:
    async with trio.open_nursery() as nursery:

        async def dial(_: trio.Nursery) -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(faulty.serve, theirs)
            await trio.lowlevel.checkpoint()
            return ours

        yield dial
        nursery.cancel_scope.cancel()


async def run_against(faulty: Faulty, plan: Plan) -> Result:
    async with dialling(faulty) as dial:
        return await Load(plan, dial, "faulty").run()
    raise AssertionError


def honest(number: int, message: Publish) -> list[Publish]:
    return [message]


def loses(number: int, message: Publish) -> list[Publish]:
    return [] if number in (7, 8, 199) else [message]


def doubles(number: int, message: Publish) -> list[Publish]:
    return [message, message] if number == 7 else [message]


def shuffler() -> Mangle:
    held: list[Publish] = []

    def mangle(number: int, message: Publish) -> list[Publish]:
        if number == 7:
            held.append(message)
            return []
        return [message, held.pop()] if held and number == 9 else [message]

    return mangle


def changes(number: int, message: Publish) -> list[Publish]:
    return [Publish(message.topic, message.payload[:-1] + b"!", message.qos, packet_id=message.packet_id)] if number == 7 else [message]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_an_honest_broker_is_found_honest(qos: int, autojump_clock: trio.testing.MockClock) -> None:
    nothing_wrong(await run_against(Faulty(honest), replace(COUNTED, qos=qos)))


@pytest.mark.parametrize(("qos", "broken"), [(0, []), (1, ["3 messages lost at QoS 1"]), (2, ["3 messages lost at QoS 2"])])
async def test_loss_is_seen_and_breaks_a_promise_from_qos_1_on(qos: int, broken: list[str], autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(loses), replace(COUNTED, qos=qos))
    assert (result.lost_count, result.delivered_count, result.broken_promises()) == (3, 197, broken)


async def test_a_window_full_of_lost_messages_does_not_stop_the_load(autojump_clock: trio.testing.MockClock) -> None:
    """All of the first window is lost: the load waits for it as long as `drain_s`, and goes on."""
    result = await run_against(Faulty(lambda number, message: [message] if number >= 50 else []), COUNTED)
    assert (result.published_count, result.lost_count) == (200, 50)


@pytest.mark.parametrize(("qos", "broken"), [(0, []), (1, []), (2, ["1 messages doubled at QoS 2"])])
async def test_a_duplicate_is_seen_and_breaks_a_promise_at_qos_2(qos: int, broken: list[str], autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(doubles), replace(COUNTED, qos=qos))
    assert (result.duplicated_count, result.lost_count, result.broken_promises()) == (1, 0, broken)


async def test_the_last_message_doubled_is_seen_too(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(lambda number, message: [message] * (1 + (number == 199))), COUNTED)
    assert result.duplicated_count == 1


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_wrong_order_is_seen_and_breaks_a_promise(qos: int, autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(shuffler()), replace(COUNTED, qos=qos))
    assert (result.out_of_order_count, result.lost_count, result.broken_promises()) == (1, 0, ["1 messages out of order"])


async def test_a_changed_payload_is_not_the_message(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(changes), replace(COUNTED, qos=1))
    assert (result.foreign_count, result.lost_count) == (1, 1)


async def test_messages_of_others_are_not_counted(autojump_clock: trio.testing.MockClock) -> None:
    stranger = Publish("bench/0", b"hello")
    result = await run_against(Faulty(lambda number, message: [stranger, message]), COUNTED)
    assert (result.foreign_count, result.delivered_count, result.lost_count) == (200, 200, 0)


async def test_refusals_are_not_losses(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(lambda number, message: [], puback=ReasonCode.QUOTA_EXCEEDED), replace(COUNTED, qos=1))
    assert (result.refused_count, result.expected_count, result.lost_count, result.broken_promises()) == (200, 0, 0, [])


async def test_a_lower_qos_than_asked_for_promises_less(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(lambda number, message: [], granted=0), replace(COUNTED, qos=1))
    assert (result.effective_qos, result.lost_count, result.broken_promises()) == (0, 200, [])
    assert any("granted QoS 0 only" in line for line in lines(result))


async def test_never_acknowledged_is_told(autojump_clock: trio.testing.MockClock) -> None:
    class Silent(Faulty):
        async def answer(self, stream: MemoryStream, packet: Packet) -> None:
            if not isinstance(packet, PubRel):
                await super().answer(stream, packet)

    result = await run_against(Silent(honest), replace(COUNTED, qos=2, count=10))
    assert result.unacknowledged_count == 10
    assert "10 messages never acknowledged" in result.broken_promises()


REFUSING: list[tuple[dict[str, object], Plan, type[BrokerError], str]] = [
    ({"connack": ConnAck(False, ReasonCode.NOT_AUTHORIZED)}, COUNTED, ConnectRefused, "not authorized"),
    ({"granted": 0x87}, COUNTED, SubscribeRefused, "not authorized"),
    ({"connack": ConnAck(False, ReasonCode.SUCCESS, Properties(maximum_qos=1))}, replace(COUNTED, qos=2), NotSupported, "highest QoS is 1"),
    ({"connack": ConnAck(False, ReasonCode.SUCCESS, Properties(maximum_packet_size=50))}, COUNTED, NotSupported, "at most 50"),
]


@pytest.mark.parametrize(("told", "plan", "kind", "words"), REFUSING)
async def test_a_refusal_ends_it(
    told: dict[str, object], plan: Plan, kind: type[BrokerError], words: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(kind, match=words), flatten_subgroups=True):
        await run_against(Faulty(honest, **told), plan)  # type: ignore[arg-type]  # a table of keywords


async def test_a_broker_that_goes_away_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    class Leaving(Faulty):
        async def answer(self, stream: MemoryStream, packet: Packet) -> None:
            await super().answer(stream, packet)
            if self.count == 100:
                for subscriber in self.subscribers:
                    await subscriber.aclose()

    with pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost), flatten_subgroups=True):
        await run_against(Leaving(honest), COUNTED)


class BreaksAtPing(trio.abc.Stream):
    """The connection is gone, and the first to notice is who says PINGREQ."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if bytes(data) == encode(PingReq(), MQTT_5):
            raise trio.BrokenResourceError
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize("plan", [COUNTED, Plan(rate=1, duration_s=60, keep_alive_s=10)])
async def test_a_connection_that_is_lost_at_a_ping_is_told_as_such(plan: Plan, autojump_clock: trio.testing.MockClock) -> None:
    async with dialling(Faulty(honest)) as dial:

        async def dial_one(keeper: trio.Nursery) -> trio.abc.Stream:
            return BreaksAtPing(await dial(keeper))

        with pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost, match="bench-.*: the connection was lost"), flatten_subgroups=True):
            await Load(plan, dial_one, "memory").run()


async def test_a_broker_that_does_not_answer_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    class Mute(Faulty):
        async def answer(self, stream: MemoryStream, packet: Packet) -> None:
            await trio.lowlevel.checkpoint()

    with pytest.RaisesGroup(pytest.RaisesExc(ConnectError, match="no answer within 10 s"), flatten_subgroups=True):
        await run_against(Mute(honest), COUNTED)


async def test_a_broker_that_stops_reading_does_not_hold_the_load(autojump_clock: trio.testing.MockClock) -> None:
    class Deaf(Faulty):
        async def answer(self, stream: MemoryStream, packet: Packet) -> None:
            await super().answer(stream, packet)
            if isinstance(packet, Publish):
                await trio.sleep_forever()

    started = trio.current_time()
    result = await run_against(Deaf(honest), Plan(duration_s=5, warmup_s=0, drain_s=1, payload_bytes=30_000))
    assert trio.current_time() - started < 30
    assert result.lost_count > 0


# ---- cut short ----------------------------------------------------------------------------------------------------


def stops_at_100(number: int, message: Publish) -> list[Publish]:
    return [] if number in (7, 8) or number >= 100 else [message]


async def test_what_is_under_way_when_it_is_cut_short_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    """Two were passed over by later ones; of the fifty that were under way nothing is known."""
    async with dialling(Faulty(stops_at_100)) as dial:
        load = Load(replace(COUNTED, qos=1), dial, "faulty")
        with trio.move_on_after(0.5):
            await load.run()
        assert load.phase == "measuring"
        result = load.result("by SIGINT")
    assert (result.published_count, result.delivered_count, result.lost_count, result.under_way_count) == (150, 98, 2, 50)
    assert (result.measured.seconds, result.measured.published_count, result.latency.count) == (0.5, 150, 98)
    assert result.broken_promises() == ["2 messages lost at QoS 1"]
    found = figures(result)
    assert (found["cut_short"], found["lost"], found["under_way"], found["delivered_per_s"]) == ("by SIGINT", 2, 50, 196.0)
    text = lines(result)
    assert text[1] == "cut short  by SIGINT; what follows is of 0.5 s"
    assert "faults     2 lost, 0 duplicated, 0 out of order, 50 under way" in text


async def test_unacknowledged_is_no_broken_promise_of_a_run_cut_short(autojump_clock: trio.testing.MockClock) -> None:
    async with dialling(Faulty(honest)) as dial:
        load = Load(Plan(qos=2, rate=128, duration_s=60, warmup_s=10), dial, "faulty")
        with trio.move_on_after(5):
            await load.run()
        load.publishers[0].unacknowledged.add(60_000)
        assert load.phase == "warming up"
        result = load.result("by SIGTERM")
    assert (result.unacknowledged_count, result.broken_promises(), result.latency.count) == (1, [], 0)
    assert result.measured.seconds == pytest.approx(5)
    assert result.measured.published_count == result.published_count == pytest.approx(640, abs=1)


async def test_a_whole_run_is_not_cut_short(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(loses), COUNTED)
    assert (figures(result)["cut_short"], result.under_way_count, result.lost_count) == (None, 0, 3)
    assert "cut short" not in "\n".join(lines(result))


# ---- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wall_s", "share"), [(SHARE_S_MIN / 2, None), (SHARE_S_MIN * 2, 0.5)])
async def test_a_moment_says_nothing_of_the_core(wall_s: float, share: float | None) -> None:
    """A message or two were "100% of a core", and a note that the figures are our own limit."""
    load = Load(COUNTED, no_dial, "nowhere")
    load._first = _Mark(1.0, cpu_s=3.0, wall_s=5.0)
    load._last = _Mark(2.0, cpu_s=3.0 + wall_s / 2, wall_s=5.0 + wall_s)
    assert load.result().measured.own_cpu_share == (None if share is None else pytest.approx(share))


async def no_dial(_: trio.Nursery) -> trio.abc.Stream:
    raise AssertionError("nothing is dialled here")


async def test_figures_and_lines_say_the_same(autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(loses), replace(COUNTED, qos=1))
    found = figures(result)
    assert (found["published"], found["delivered"], found["expected"], found["lost"]) == (200, 197, 200, 3)
    assert set(found["latency_us"]) == {"p50", "p90", "p99", "p99.9", "max", "mean", "count"}
    assert found["broken_promises"] == ["3 messages lost at QoS 1"]
    text = "\n".join(lines(result))
    assert "1 publisher, 1 subscriber, 1 topic, QoS 1, 64 bytes, window 50" in text
    assert "3 lost, 0 duplicated, 0 out of order" in text


@pytest.mark.parametrize(("rate", "said"), [(0.25, "0.25 messages/s"), (5000.0, "5,000 messages/s"), (None, "window 50")])
async def test_the_pace_is_told_as_it_was_asked_for(rate: float | None, said: str, autojump_clock: trio.testing.MockClock) -> None:
    result = await run_against(Faulty(honest), replace(COUNTED, rate=rate, count=2))
    assert lines(result)[0].endswith(f", {said}")
