"""Keep Alive: whose value counts, and what ends it (MQTT 5.0, 3.1.2.10, 3.2.2.3.14; 3.1.1, 3.1.2.10)."""

from __future__ import annotations

import pytest

from broker.wire.packets import Publish, WillMessage
from tests.conformance.harness import V5, Scene, both_versions


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-22", "MQTT5-3.2.2-22", "MQTT311-3.1.2-24", "MQTT5-3.1.2-20", "MQTT311-3.1.2-23")
async def test_silence_for_one_and_a_half_keep_alive_closes(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("will")
        peer = await scene.connect("c", version, keep_alive_s=10, will=WillMessage("will", b"gone"))
        if version >= V5:
            assert peer.connack is not None
            assert peer.connack.properties.server_keep_alive is None
        await scene.advance(14.9)
        await peer.expect_nothing()
        await watcher.expect_nothing()
        await scene.advance(0.2)
        await peer.expect_closed(0x8D)
        await watcher.expect(Publish("will", b"gone"))


@both_versions
@pytest.mark.parametrize("kind", ["PINGREQ", "PUBLISH"])
@pytest.mark.statement("MQTT5-3.1.2-22", "MQTT311-3.1.2-24")
async def test_any_packet_counts(version: int, kind: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, keep_alive_s=10)
        for _ in range(5):
            await scene.advance(14)
            if kind == "PINGREQ":
                await peer.expect_open()
            else:
                await peer.publish("a", b"x", 1)
        await scene.advance(16)
        await peer.expect_closed(0x8D)


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-22", "MQTT311-3.1.2-24")
async def test_what_the_broker_sends_does_not_count(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, keep_alive_s=10)
        await peer.subscribe("a")
        sender = await scene.connect("s", version)
        for _ in range(14):
            await scene.advance(1)
            await sender.publish("a", b"x")
            await peer.take(Publish)
        await scene.advance(1.1)
        await peer.expect_closed(0x8D)


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-22", "MQTT311-3.1.2-24")
async def test_zero_turns_it_off(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, keep_alive_s=0)
        await scene.advance(1_000_000)
        await peer.expect_open()


@pytest.mark.parametrize("wanted_s", [0, 61, 65_535])
@pytest.mark.statement("MQTT5-3.1.2-21", "MQTT5-3.2.2-21")
async def test_server_keep_alive_is_told_and_enforced(wanted_s: int) -> None:
    async with Scene(keepalive_s_max=60) as scene:
        peer = await scene.connect("c", keep_alive_s=wanted_s)
        assert peer.connack is not None
        assert peer.connack.properties.server_keep_alive == 60
        await scene.advance(89)
        await peer.expect_open()
        await scene.advance(89)
        await peer.expect_nothing()
        await scene.advance(2)
        await peer.expect_closed(0x8D)


@both_versions
@pytest.mark.statement("MQTT5-3.2.2-22")
async def test_without_server_keep_alive_the_clients_value_counts(version: int) -> None:
    async with Scene(keepalive_s_max=60) as scene:
        peer = await scene.connect("c", version, keep_alive_s=30)
        if version >= V5:
            assert peer.connack is not None
            assert peer.connack.properties.server_keep_alive is None
        await scene.advance(44)
        await peer.expect_nothing()
        await scene.advance(2)
        await peer.expect_closed(0x8D)


async def test_no_connect_in_reasonable_time_closes() -> None:
    async with Scene(connect_timeout_s=10) as scene:
        peer = await scene.peer()
        await scene.advance(9)
        await peer.expect_nothing()
        await scene.advance(2)
        await peer.expect_end()
