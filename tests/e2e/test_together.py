"""All makes at once: one QoS 2 message published by paho, received once by mosquitto_sub, mqtt.js, aiomqtt and `broker sub`."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Open
from tests.e2e.tools import DrivenClient, Received

BURST_COUNT = 2_000


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
def test_one_message_for_all(version: str, open_client: Open, topic: str) -> None:
    names = ("mosquitto", "mqttjs", "aiomqtt", "broker")
    clients = [open_client(name, version=version) for name in names]
    for client in clients:
        client.subscribe(topic, 2)
    publisher = open_client("paho", version=version)
    publisher.publish(topic, "exactly once", 2)
    publisher.publish(topic, "and then the end", 2)
    for name, client in zip(names, clients, strict=True):
        assert client.wait(2) == [Received(topic, "exactly once", 2, False), Received(topic, "and then the end", 2, False)], name


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
def test_a_program_that_waits_for_nothing(version: str, open_client: Open, topic: str) -> None:
    """mqtt.js sends whatever a program publishes at once, and heeds no Receive Maximum: of QoS 2 all is unfinished then."""
    receiving = open_client("paho", version=version)
    receiving.subscribe(topic, 2)
    publisher = open_client("mqttjs", version=version)
    assert isinstance(publisher, DrivenClient)
    for number in range(BURST_COUNT):
        publisher.program.order(do="publish", topic=topic, payload=str(number), qos=2, retain=False, properties={})
    assert [message.payload for message in receiving.wait(BURST_COUNT)] == [str(number) for number in range(BURST_COUNT)]
    for _ in range(BURST_COUNT):
        publisher.program.wait("published")


def test_versions_meet(open_client: Open, topic: str) -> None:
    """3.1, 3.1.1 and 5.0 on one port."""
    for version in ("3.1", "3.1.1", "5.0"):
        receiving = open_client("mosquitto", version=version)
        receiving.subscribe(f"{topic}/{version}", 2)
        for sender in ("3.1", "3.1.1", "5.0"):
            open_client("paho", version=sender, client_id=f"s{topic[-10:]}{sender}").publish(f"{topic}/{version}", sender, 2)
            assert receiving.wait(1) == [Received(f"{topic}/{version}", sender, 2, False)]
