"""What a client may not publish, in every way that a message may be taken.

A PUBLISH that comes alone, in a row, for the first time or to be retained is each time looked at by other lines of the broker (`core.relay`,
`core.first`, `core.publish_run`, `core.retaining`), and each of them has to see what is wrong with it.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.harness import Scene, both_versions
from tests.conformance.shorthand import drained
from tests.conformance.wirebytes import publish_frame

WRONG = [
    (fault, first_byte)
    for fault, first_bytes in {
        "id 0": (0x32, 0x33, 0x34, 0x35),
        "wildcard": (0x30, 0x31, 0x32, 0x33, 0x34),
        "U+0000": (0x30, 0x31, 0x32, 0x33, 0x34),
        "QoS": (0x32, 0x33, 0x34, 0x35),
        "size": (0x30, 0x31, 0x32, 0x33, 0x34),
    }.items()
    for first_byte in first_bytes
]


@both_versions
@pytest.mark.parametrize(("fault", "first_byte"), WRONG)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.statement("MQTT5-2.2.1-3", "MQTT311-2.3.1-1", "MQTT5-3.3.2-2", "MQTT311-3.3.2-2", "MQTT5-1.5.4-2", "MQTT311-1.5.3-2")
async def test_a_wrong_publish_closes_however_it_is_taken(version: int, fault: str, first_byte: int, known: bool, together: bool) -> None:
    """The first on its topic or one of many, alone in its read or not, kept or not: nobody gets it, and nothing is retained."""
    qos = first_byte >> 1 & 3
    limits: dict[str, Any] = {"QoS": {"maximum_qos": qos - 1}, "size": {"packet_bytes_max": 128}}.get(fault, {})
    topic = {"wildcard": "t/+", "U+0000": "t/\0"}.get(fault, "t/1")
    packet_id = 0 if fault == "id 0" else 9
    async with Scene(**limits) as scene:
        other = await scene.connect("s")
        await other.subscribe("#", qos=2)
        peer = await scene.connect("c", version)
        good = publish_frame("t/1", b"good", version=version)
        wrong = publish_frame(
            topic.encode(), b"x" * (150 if fault == "size" else 5), version=version, first_byte=first_byte, packet_id=packet_id if qos else None
        )
        for _ in range(4 if known else 0):
            await peer.send(good)
            await scene.settle()
        await peer.send((publish_frame("t/2", b"good", version=version) if together else b"") + wrong)
        reasons = {"QoS": (0x9B,), "size": (0x95,)}.get(fault, (0x81, 0x82, 0x90))
        await peer.expect_closed(*reasons)
        assert await drained(other) == [b"good"] * ((4 if known else 0) + together)
        late = await scene.connect("late")
        await late.subscribe("#")
        await late.expect_nothing()
