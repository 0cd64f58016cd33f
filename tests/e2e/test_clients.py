"""What a user expects of a broker, with the clients that users have: paho, aiomqtt, mosquitto's, mqtt.js, and our own commands.

paho is at the other end of each scenario, so that a fault names one client or all of them.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.e2e.conftest import Open
from tests.e2e.tools import BROKER, ROOT, SECONDS_MAX, Received, Will

pytestmark = pytest.mark.parametrize("name", ["paho", "aiomqtt", "mosquitto", "mqttjs", "broker"])
both_versions = pytest.mark.parametrize("version", ["5.0", "3.1.1"])
PROPERTIES: dict[str, Any] = {
    "content_type": "text/plain",
    "response_topic": "an/answer",
    "correlation_data": "c-17",
    "user_properties": [["room", "kitchen"], ["room", "hall"], ["ä", "ö"]],
}


@both_versions
def test_every_qos_from_it(name: str, version: str, open_client: Open, topic: str) -> None:
    other = open_client("paho")
    other.subscribe(f"{topic}/+", 2)
    client = open_client(name, version=version)
    for qos in (0, 1, 2):
        client.publish(f"{topic}/{qos}", f"grüße {qos}", qos)
        assert other.wait(1) == [Received(f"{topic}/{qos}", f"grüße {qos}", qos, False)]


@both_versions
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_every_qos_to_it(name: str, version: str, granted: int, open_client: Open, topic: str) -> None:
    client = open_client(name, version=version)
    client.subscribe(f"{topic}/#", granted)
    other = open_client("paho", version="3.1.1")
    for qos in (0, 1, 2):
        other.publish(f"{topic}/{qos}", f"grüße {qos}", qos)
        assert client.wait(1) == [Received(f"{topic}/{qos}", f"grüße {qos}", min(qos, granted), False)]


@both_versions
def test_retained(name: str, version: str, open_client: Open, topic: str) -> None:
    live = open_client("paho")
    live.subscribe(topic, 1)
    open_client(name, version=version).publish(topic, "warm", 1, retain=True)
    assert live.wait(1) == [Received(topic, "warm", 1, False)]
    late = open_client(name, version=version)
    late.subscribe(topic, 1)
    assert late.wait(1) == [Received(topic, "warm", 1, True)]

    open_client(name, version=version).publish(topic, "", 1, retain=True)  # clears
    later = open_client("paho")
    later.subscribe(topic, 1)
    live.publish(topic, "cold", 1)
    assert later.wait(1) == [Received(topic, "cold", 1, False)], "the cleared message came first"


@both_versions
def test_will(name: str, version: str, open_client: Open, topic: str) -> None:
    other = open_client("paho")
    other.subscribe(f"{topic}/#", 2)
    for how, will_topic in (("close", "closed"), ("kill", "killed")):
        client = open_client(name, version=version, will=Will(f"{topic}/{will_topic}", "gone", 1))
        client.subscribe(f"{topic}/nothing", 0)
        if how == "kill":
            client.kill()
        elif client.says_goodbye:
            client.close()
    assert other.wait(1) == [Received(f"{topic}/killed", "gone", 1, False)], "a proper goodbye has no will"


@both_versions
def test_session_waits(name: str, version: str, open_client: Open, topic: str) -> None:
    lasting = {"version": version, "client_id": topic.replace("/", "-"), "clean": False, "expiry_s": 60 if version == "5.0" else 0}
    client = open_client(name, **lasting)
    assert client.session_present in (False, None)
    client.subscribe(topic, 2)
    client.close()
    other = open_client("paho")
    for n in range(6):
        other.publish(topic, str(n), 1 + n % 2)
    client = open_client(name, **lasting)
    assert client.session_present in (True, None)
    if name in ("mosquitto", "broker"):
        client.subscribe(topic, 2)  # they connect only to subscribe
    messages = client.wait(6)
    for qos in (1, 2):  # a client may hand QoS 2 over at PUBREL, so later than a QoS 1 message that came after it
        assert "".join(message.payload for message in messages if message.qos == qos) == {1: "024", 2: "135"}[qos]


def test_properties_from_it(name: str, open_client: Open, topic: str) -> None:
    other = open_client("paho")
    other.subscribe(topic, 2)
    open_client(name).publish(topic, "x", 2, properties={**PROPERTIES, "message_expiry_s": 600})
    properties = other.wait(1)[0].properties
    assert 590 <= properties.pop("message_expiry_s") <= 600
    assert properties == PROPERTIES


def test_properties_to_it(name: str, open_client: Open, topic: str) -> None:
    client = open_client(name)
    client.subscribe(topic, 2)
    open_client("paho").publish(topic, "x", 2, properties={**PROPERTIES, "message_expiry_s": 600})
    properties = client.wait(1)[0].properties
    assert 590 <= properties.pop("message_expiry_s") <= 600
    assert properties == PROPERTIES


def test_request_and_response(name: str, open_client: Open, topic: str, address: tuple[str, int], request: pytest.FixtureRequest) -> None:
    """mosquitto_rr and `broker rr` ask; the others ask by hand."""
    answering = open_client("paho")
    answering.subscribe(f"{topic}/ask", 1)
    asked = {"response_topic": f"{topic}/answer"}
    if name in ("mosquitto", "broker"):
        program = [request.getfixturevalue("mosquitto_rr")] if name == "mosquitto" else [*BROKER, "rr"]
        flags = ["-h", address[0], "-p", str(address[1]), "-V", "5", "-t", f"{topic}/ask", "-e", f"{topic}/answer", "-m", "how warm?", "-W", "10"]
        asking = subprocess.Popen([*program, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    else:
        client = open_client(name)
        client.subscribe(f"{topic}/answer", 1)
        client.publish(f"{topic}/ask", "how warm?", 1, properties={**asked, "correlation_data": "7"})
    question = answering.wait(1)[0]
    assert (question.payload, question.properties["response_topic"]) == ("how warm?", asked["response_topic"])
    correlation = {key: value for key, value in question.properties.items() if key == "correlation_data"}
    answering.publish(question.properties["response_topic"], "21.5", 1, properties=correlation)
    if name in ("mosquitto", "broker"):
        out, err = asking.communicate(timeout=SECONDS_MAX)
        assert (out, err, asking.returncode) == ("21.5\n", "", 0)
    else:
        answer = client.wait(1)[0]
        assert (answer.payload, answer.properties["correlation_data"]) == ("21.5", "7")
