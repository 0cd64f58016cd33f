"""The client's core at its commonest work, as steps for `benchmarks.paths`: what comes in one read, and what goes in one send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.core.client import ClientProtocol
from broker.core.client_state import ClientOptions, Delivery, Outgoing
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, ConnAck, Properties, PubAck, Publish

TOPIC: Final = "bench/topic"
PAYLOAD: Final = b"x" * 64
OF_ONE: Final = Properties(subscription_identifiers=(1,))


def connected() -> ClientProtocol:
    core = ClientProtocol(ClientOptions(client_id="bench", receive_maximum=1000))
    core.begin_connection(0.0)
    core.receive(encode(ConnAck(False, ReasonCode.SUCCESS), MQTT_5), 0.0)
    core.take_events()
    sent(core)
    return core


def sent(core: ClientProtocol) -> int:
    """All that it has to say leaves; how many bytes."""
    count = 0
    while data := core.data_to_send():
        count += len(data)
        core.bytes_sent(len(data), 0.0)
    return count


def warm(step: Callable[[], int]) -> Callable[[], int]:
    """Python adapts a function to its work after eight calls, and a read with all its messages is one."""
    for _ in range(8):
        step()
    return step


def receiving(qos: int, messages: int = 200) -> Callable[[], int]:
    """Take a read, and settle each message."""
    core = connected()
    packets = (Publish(TOPIC, PAYLOAD, qos, packet_id=number + 1 if qos else 0, properties=OF_ONE) for number in range(messages))
    data = b"".join(encode(packet, MQTT_5) for packet in packets)

    def step() -> int:
        core.receive(data, 0.0)
        events = core.take_events()
        for event in events:
            assert isinstance(event, Delivery)
            if qos:
                core.settle(event)
        if sent(core) != (4 * messages if qos else 0) or len(events) != messages:
            raise ValueError("not all were received and acknowledged")
        return messages

    return warm(step)


def publishing(qos: int, messages: int = 200) -> Callable[[], int]:
    """Messages that leave together, and the acknowledgements of all in one read."""
    core = connected()

    def step() -> int:
        outgoing = [core.publish(Publish(TOPIC, PAYLOAD, qos), now=0.0) for _ in range(messages)]
        sent(core)
        if qos:
            core.receive(b"".join([encode(PubAck(one.packet_id), MQTT_5) for one in outgoing]), 0.0)
        done = core.take_events()
        if len(done) != messages or not all(isinstance(event, Outgoing) and event.outcome == "acknowledged" for event in done):
            raise ValueError("not all were published")
        return messages

    return warm(step)
