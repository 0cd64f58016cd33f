"""Peers over real sockets that say nothing, too little, too much or the wrong thing, or that do not read: each harms itself alone."""

from __future__ import annotations

import contextlib
import os
import tracemalloc

import pytest
import trio

from broker.reasons import ReasonCode
from broker.wire.codec import encode, encode_varint
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    WillMessage,
)
from tests.hostile.scene import Scene, scene
from tests.net.mqtt import Client

CONNECT = encode(Connect("hostile", MQTT_5), MQTT_5)
BIG_HEADER = b"\x30\xff\xff\xff\x7f\x00\x01t\x00"
"""256 MiB are to follow."""


async def ends(client: Client) -> list[Packet]:
    """All that the broker says until it closes; then we do."""
    said: list[Packet] = []
    with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):  # it closed while we were still sending
        while (packet := await client.receive()) is not None:
            said.append(packet)
    await client.stream.aclose()
    return said


async def pour(client: Client, data: bytes) -> None:
    """Send it, or as much as the broker takes before it closes."""
    with contextlib.suppress(trio.BrokenResourceError):
        await client.stream.send_all(data)


# ---- too little ----------------------------------------------------------------------------------------------------------


async def test_connections_that_say_nothing_or_not_enough(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, connect_timeout_s=0.3) as here:
        silent = [await here.dial() for _ in range(200)]
        for number, client in enumerate(silent):
            await client.stream.send_all(CONNECT[: number % len(CONNECT)])
        await here.check_neighbours()
        for client in silent:
            assert await ends(client) == []


async def test_a_connect_that_comes_a_byte_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog) as here:
        slow = await here.dial()
        for index in range(len(CONNECT)):
            await slow.stream.send_all(CONNECT[index : index + 1])
            await here.check_neighbours()
        connack = await slow.receive()
        assert isinstance(connack, ConnAck)
        assert connack.reason == 0
        await slow.stream.aclose()


async def test_opened_and_dropped_by_the_thousand(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog) as here:
        descriptors = len(os.listdir("/proc/self/fd"))
        beginnings = (b"", b"\x10", CONNECT, CONNECT + BIG_HEADER, b"\x00\xff", b"GET / HTTP/1.1\r\n\r\n")
        for round_number in range(20):
            batch = [await here.dial() for _ in range(100)]
            for number, client in enumerate(batch):
                await client.stream.send_all(beginnings[(round_number + number) % len(beginnings)])
                await client.stream.aclose()
            await here.check_neighbours()
        await here.until(connections_open_count=2)
        assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_half_open_and_half_closed(caplog: pytest.LogCaptureFixture) -> None:
    """One that keeps its line and is gone is found by its Keep Alive; one that closed its sending side gets what it was owed."""
    async with scene(caplog) as here:
        heir, gone, half = await here.client("heir"), await here.dial(), await here.dial()
        await heir.subscribe("will")
        await gone.send(Connect("gone", keep_alive_s=1, will=WillMessage("will", b"gone")))
        assert isinstance(await gone.receive(), ConnAck)
        await half.send(Connect("half"), Subscribe(1, (SubscriptionRequest("half"),)), Publish("half", b"owed"))
        assert isinstance(half.stream, trio.SocketStream)
        await half.stream.send_eof()
        assert [type(packet) for packet in await ends(half)] == [ConnAck, SubAck, Publish]
        await here.check_neighbours()
        will = await heir.receive()
        assert isinstance(will, Publish)
        assert will.payload == b"gone"
        assert await ends(gone) == [Disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT)]
        await heir.stream.aclose()


# ---- too much ------------------------------------------------------------------------------------------------------------


async def test_frames_of_256_mib_that_are_announced_and_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog) as here:
        for number in range(50):
            client = await here.client(f"big{number}")
            await client.stream.send_all(BIG_HEADER)
            assert await ends(client) == [Disconnect(ReasonCode.PACKET_TOO_LARGE)]


async def test_frames_of_256_mib_take_no_memory_where_they_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, packet_bytes_max=268_435_460) as here:
        clients = [await here.client(f"big{number}") for number in range(50)]
        tracemalloc.start()
        for client in clients:
            await client.send(PingReq())
            assert await client.receive() == PingResp()
            await client.stream.send_all(BIG_HEADER + bytes(1000))
        await here.check_neighbours()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert grown < 1_000_000, "50 times 256 MiB were announced"
        for client in clients:
            await client.stream.aclose()


async def test_a_hundred_that_stop_within_a_large_packet(caplog: pytest.LogCaptureFixture) -> None:
    """Together they hold no more than their share of the memory; the first of them give way, and the neighbours' packets come through."""
    memory, packet = 8_000_000, encode(Publish("t", bytes(100_000)), MQTT_5)
    async with scene(caplog, memory_bytes_max=memory, packet_bytes_max=len(packet)) as here:
        hostile: list[Client] = []
        for number in range(100):
            client = await here.client(f"hostile{number}", 5 if number % 2 else 4)
            await pour(client, packet[:90_000])
            hostile.append(client)
            await here.check_neighbours()
            assert here.hub.statistics()["receiving_bytes"] <= memory // 8
        large = await here.client("large")
        await large.subscribe("t")
        await large.stream.send_all(packet)  # they have fallen silent, or soon will have
        message = await large.receive()
        assert isinstance(message, Publish)
        assert len(message.payload) == 100_000
        await large.stream.aclose()
        thrown_out = 100 - (here.gauges()["clients_connected"] - 2)
        assert thrown_out >= 89
        first = [await ends(client) for client in hostile[1:50:2]]
        assert first == [[Disconnect(ReasonCode.QUOTA_EXCEEDED)]] * 25
        for client in hostile:
            await client.stream.aclose()


async def test_a_quarter_of_a_million_subscriptions(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, subscriptions_count_max=1000) as here:
        greedy = await here.client("greedy")
        for part in range(10):
            filters = b"".join(b"\x00\x07%07d\x00" % (part * 25_000 + number) for number in range(25_000))
            body = b"\x00\x01\x00" + filters
            await greedy.stream.send_all(b"\x82" + encode_varint(len(body)) + body)
            suback = await greedy.receive()
            assert isinstance(suback, SubAck)
            granted = 1000 if part == 0 else 0
            assert suback.reasons[:granted] == (ReasonCode.SUCCESS,) * granted
            assert set(suback.reasons[granted:]) == {ReasonCode.QUOTA_EXCEEDED}
            await here.check_neighbours()
        assert here.gauges()["subscriptions_count"] == 1001
        await greedy.stream.aclose()


async def asked(here: Scene, packet: Packet, answer: type[Packet]) -> list[int]:
    client = await here.client("greedy")
    await pour(client, encode(packet, MQTT_5))
    reply = await client.receive()
    assert isinstance(reply, answer), reply
    await client.stream.aclose()
    await here.until(connections_open_count=2)
    reasons = reply.reasons if isinstance(reply, SubAck) else (reply.reason,)  # type: ignore[union-attr]
    return [int(reason) for reason in reasons]


async def test_aliases_properties_and_levels_beyond_what_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    levels = "/".join("x" * 30_000)
    properties = Properties(user_properties=(("n", "v"),) * 100_000)
    async with scene(caplog) as here:
        assert await asked(here, Publish("t", properties=Properties(topic_alias=33)), Disconnect) == [ReasonCode.TOPIC_ALIAS_INVALID]
        assert await asked(here, Publish("t", properties=properties), Disconnect) == [ReasonCode.PACKET_TOO_LARGE]
        assert await asked(here, Publish(levels, qos=1, packet_id=1), PubAck) == [ReasonCode.TOPIC_NAME_INVALID]
        assert await asked(here, Subscribe(1, (SubscriptionRequest(levels),)), SubAck) == [ReasonCode.TOPIC_FILTER_INVALID]
        assert await asked(here, Subscribe(1, (SubscriptionRequest("t"),), properties), Disconnect) == [ReasonCode.PACKET_TOO_LARGE]
        await here.check_neighbours()


async def test_aliases_set_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog) as here:
        client = await here.client("restless")
        for part in range(20):
            frames = [encode(Publish(f"{part}/{number}", b"", properties=Properties(topic_alias=1 + number % 32)), MQTT_5) for number in range(500)]
            await client.stream.send_all(b"".join(frames))
            await client.send(PingReq())
            assert await client.receive() == PingResp()
            await here.check_neighbours()
        await client.stream.aclose()


async def test_one_that_asks_and_does_not_read(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, outbox_bytes_high=16_384, outbox_bytes_max=65_536) as here:
        client = await here.client("deaf", small=True)
        with trio.move_on_after(15) as scope:
            for _ in range(2000):
                await pour(client, b"\xc0\x00" * 10_000)
                if here.gauges()["clients_connected"] == 2:
                    break
        assert not scope.cancelled_caught
        await here.until(clients_connected=2)
        await client.stream.aclose()


# ---- no reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1])
async def test_subscribers_that_never_read(caplog: pytest.LogCaptureFixture, qos: int) -> None:
    """Their publisher is made to wait for their credit, not for ever; what waits for them is bounded, the rest is counted."""
    limits = {
        "outbox_bytes_high": 16_384, "outbox_bytes_max": 65_536, "queue_bytes_max": 65_536, "inflight_count_max": 20,
        "slow_subscriber_grace_s": 0.1,
    }  # fmt: skip
    async with scene(caplog, **limits) as here:
        stuck = [await here.client(f"stuck{number}") for number in range(3)]
        for one in stuck:
            await one.subscribe("flood", qos)
        publisher = await here.client("publisher")
        sent = 0
        for _ in range(60):
            # So much that no socket's buffer holds it; each round is answered before the next, so that little of it is ours.
            packets = [Publish("flood", bytes(10_000), qos, packet_id=1 + n if qos else 0) for n in range(100)]
            await publisher.send(*packets, PingReq())
            sent += len(packets)
            with trio.fail_after(10):
                while await publisher.receive() != PingResp():
                    pass
            gauges = here.gauges()
            assert gauges["queued_bytes"] <= 3 * 2 * 65_536
            await here.check_neighbours()
        dropped = here.hub.statistics()["publish_dropped"]
        assert 0 < dropped <= 3 * sent
        for one in (*stuck, publisher):
            await one.stream.aclose()


# ---- limits by address and by rate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
async def test_more_connections_than_an_address_may_have(caplog: pytest.LogCaptureFixture, version: int) -> None:
    async with scene(caplog, connections_per_address_max=10) as here:
        held = [await here.client(f"c{number}", version) for number in range(10)]
        refused = await here.dial(version)
        connack = await refused.connect("one more")
        assert connack.reason == (ReasonCode.QUOTA_EXCEEDED if version == MQTT_5 else ReasonCode.SERVER_UNAVAILABLE)
        assert await ends(refused) == []
        silent = [await here.dial(version) for _ in range(200)]  # 64 are waited for, the others are closed at once
        for client in silent[-100:]:
            assert await ends(client) == []
        await here.check_neighbours()
        assert here.hub.statistics()["refused_connections_count"] == 201
        assert here.gauges()["connections_open_count"] == 2 + 10 + 64
        for client in (*silent, held[0]):
            await client.stream.aclose()
        await here.until(connections_open_count=11)
        held[0] = await here.client("again", version)
        for client in held:
            await client.stream.aclose()
    told = [record for record in caplog.records if "refused a connection from" in record.getMessage()]
    assert len(told) == 1, "once in ten seconds"


async def test_faster_connections_than_an_address_may_make(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, connects_per_address_per_s_max=0.001, connects_per_address_burst_max=5) as here:
        for number in range(5):
            client = await here.client(f"c{number}")
            await client.stream.aclose()
        for version, reason in ((MQTT_5, ReasonCode.CONNECTION_RATE_EXCEEDED), (MQTT_311, ReasonCode.SERVER_UNAVAILABLE)):
            refused = await here.dial(version)
            assert (await refused.connect("too fast")).reason == reason
            assert await ends(refused) == []
        assert here.hub.statistics()["addresses_remembered"] == 2


async def test_two_with_one_client_identifier(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, connects_per_client_id_per_s_max=0.001, connects_per_client_id_burst_max=6) as here:
        owner = await here.client("oven")
        for _ in range(5):  # each takes over, and the other comes back at once
            loser, owner = owner, await here.client("oven")
            assert await ends(loser) == [Disconnect(ReasonCode.SESSION_TAKEN_OVER)]
        for _ in range(10):
            for version, reason in ((MQTT_5, ReasonCode.CONNECTION_RATE_EXCEEDED), (MQTT_311, ReasonCode.SERVER_UNAVAILABLE)):
                refused = await here.dial(version)
                assert (await refused.connect("oven")).reason == reason
                assert await ends(refused) == []
        await owner.send(PingReq())
        assert await owner.receive() == PingResp()
        await owner.stream.aclose()
    told = [record.getMessage() for record in caplog.records if "refused 'oven'" in record.getMessage()]
    assert len(told) == 1, "once in ten seconds"
    assert "do two devices have the same one?" in told[0]


@pytest.mark.parametrize("qos", [0, 1])
async def test_more_messages_than_a_client_may_send(caplog: pytest.LogCaptureFixture, qos: int) -> None:
    async with scene(caplog, publish_per_s_max=500) as here:
        hasty = await here.client("hasty")
        own = await here.client("own")
        await own.subscribe("flood")
        await hasty.send(*[Publish("flood", b"%d" % n, qos, packet_id=n + 1 if qos else 0) for n in range(800)])
        await here.check_neighbours()
        for number in range(800):
            message = await own.receive()
            assert isinstance(message, Publish)
            assert message.payload == b"%d" % number
        assert here.hub.statistics()["held_up_count"] > 0
        for client in (hasty, own):
            await client.stream.aclose()


async def test_or_it_is_thrown_out(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(caplog, receive_bytes_per_s_max=10_000, disconnect_above_rate=True) as here:
        hasty = await here.client("hasty")
        await pour(hasty, encode(Publish("flood", bytes(9000)), MQTT_5) * 5)
        assert await ends(hasty) == [Disconnect(ReasonCode.MESSAGE_RATE_TOO_HIGH)]


# ---- the wrong thing -----------------------------------------------------------------------------------------------------


async def test_every_byte_flipped(caplog: pytest.LogCaptureFixture) -> None:
    will = WillMessage("w", b"will", 1, True)
    said = encode(Connect("f", MQTT_5, keep_alive_s=60, will=will, username="u", password=b"p"), MQTT_5)
    said += encode(Subscribe(1, (SubscriptionRequest("a/+", 2),)), MQTT_5) + encode(Publish("a/b", b"x", 2, packet_id=7), MQTT_5)
    async with scene(caplog, connect_timeout_s=0.2) as here:
        for index in range(len(said)):
            batch = [await here.dial() for _ in range(8)]
            for bit, client in enumerate(batch):
                await pour(client, said[:index] + bytes([said[index] ^ 1 << bit]) + said[index + 1 :])
            for client in batch:
                await client.stream.aclose()
            if index % 10 == 0:
                await here.check_neighbours()
        await here.until(connections_open_count=2)
