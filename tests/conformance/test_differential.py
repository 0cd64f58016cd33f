"""Mosquitto and our broker live through the same scenarios, and every client must see the same.

Hypothesis makes the scenarios: three clients of both versions that come, go, subscribe, unsubscribe and publish. What is seen is compared
step by step, each client's in its order of arrival save where the standards promise none. Differences that the standards allow, or in which
Mosquitto (2.0.11 of Debian 12) is not right, are taken out where they would arise, each with the statement that proves it.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import BrokerThread, broker_thread
from broker.wire.codec import decode, encode
from broker.wire.packets import (
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
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from tests.conformance.wirebytes import body_of, take_frame
from tests.conftest import find_program

TOPICS: Final = ("a", "a/b", "a/b/c", "b/b", "/a", "a/", "$x/a")
FILTERS: Final = ("#", "+", "a", "a/#", "a/+", "+/b", "+/+", "a/b", "a/b/c", "/+", "$x/#", "+/a")
VERSIONS: Final = {"one": 5, "two": 5, "old": 4}
NEVER: Final = 0xFFFF_FFFF
WAIT_S: Final = 5.0

Event: TypeAlias = tuple[Any, ...]
Dial: TypeAlias = Callable[[], socket.socket]


# ---- scenarios ----


class Arrive(NamedTuple):
    client: str
    clean: bool
    lasts: bool


class Leave(NamedTuple):
    client: str
    politely: bool


class Ask(NamedTuple):
    client: str
    filter: str
    qos: int
    no_local: bool
    retain_as_published: bool
    retain_handling: int
    identifier: int


class Forget(NamedTuple):
    client: str
    filter: str


class Say(NamedTuple):
    client: str
    topic: str
    payload: int
    qos: int
    retain: bool


Step: TypeAlias = Arrive | Leave | Ask | Forget | Say

names = st.sampled_from(sorted(VERSIONS))
qos_levels = st.integers(0, 2)
steps = st.one_of(
    st.builds(Arrive, names, st.booleans(), st.booleans()),
    st.builds(Leave, names, st.booleans()),
    st.builds(Ask, names, st.sampled_from(FILTERS), qos_levels, st.booleans(), st.booleans(), st.integers(0, 2), st.integers(0, 3)),
    st.builds(Forget, names, st.sampled_from(FILTERS)),
    st.builds(Say, names, st.sampled_from(TOPICS), st.integers(0, 3), qos_levels, st.booleans()),
    st.builds(Say, names, st.sampled_from(TOPICS), st.integers(0, 3), qos_levels, st.booleans()),
)
BEGINNING: Final = [Arrive(name, True, True) for name in sorted(VERSIONS)]


# ---- a client of blocking sockets ----


class Wire:
    """Acknowledges everything, and keeps what it saw."""

    def __init__(self, stream: socket.socket, version: int) -> None:
        stream.settimeout(WAIT_S)
        self.stream = stream
        self.version = version
        self.seen: list[Event] = []
        self._buffer = bytearray()
        self._next_id = 0

    def send(self, packet: Packet) -> None:
        self.stream.sendall(encode(packet, self.version))

    def next_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def receive(self) -> Packet:
        while (found := take_frame(self._buffer)) is None:
            data = self.stream.recv(65_536)
            if not data:
                raise ConnectionError("the broker has closed")
            self._buffer += data
        return decode(found[0], body_of(found), self.version)

    def settle(self) -> bool:
        """Everything up to the answer of a PINGREQ; False if that was all there was."""
        self.send(PingReq())
        busy = False
        while not isinstance(packet := self.receive(), PingResp):
            busy = True
            self._handle(packet)
        return busy

    def _handle(self, packet: Packet) -> None:
        match packet:
            case Publish():
                identifiers = tuple(sorted(packet.properties.subscription_identifiers))
                self.seen.append(("message", packet.topic, packet.payload, packet.qos, packet.retain, packet.dup, identifiers))
                if packet.qos == 1:
                    self.send(PubAck(packet.packet_id))
                elif packet.qos == 2:
                    self.send(PubRec(packet.packet_id))
            case PubRel():
                self.send(PubComp(packet.packet_id))
            case PubRec():
                self.seen.append(("taken", packet.reason >= 0x80))
                if not packet.reason.failed:
                    self.send(PubRel(packet.packet_id))
            case PubAck():
                self.seen.append(("taken", packet.reason >= 0x80))
            case SubAck():
                self.seen.append(("SubAck", *map(int, packet.reasons)))
            case UnsubAck():
                # Mosquitto's 0x11 for a filter that nobody has asked for is now and then 0x00; ours is always right [MQTT5-3.11.3-2].
                self.seen.append(("UnsubAck", len(packet.reasons)))
            case PubComp():
                pass
            case _:
                self.seen.append((type(packet).__name__,))


class Play:
    """One scenario at one broker: what each client saw at each step."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._wires: dict[str, Wire] = {}
        self._used: set[str] = set()
        self._topics: set[str] = set()
        self._options: dict[tuple[str, str], Ask] = {}

    def run(self, scenario: list[Step]) -> list[dict[str, list[Event]]]:
        try:
            return [self._step(step) for step in scenario]
        finally:
            self._tidy()

    def _step(self, step: Step) -> dict[str, list[Event]]:
        wire = self._wires.get(step.client)
        if isinstance(step, Arrive):
            wire = self._arrive(step)
        elif wire is None:
            return {}
        elif isinstance(step, Leave):
            if step.politely:
                wire.send(Disconnect())
            wire.stream.close()
            del self._wires[step.client]
        else:
            wire.send(self._packet(step, wire))
        return self._gather(first=step.client)

    def _arrive(self, step: Arrive) -> Wire:
        version = VERSIONS[step.client]
        old = self._wires.pop(step.client, None)
        wire = Wire(self._dial(), version)
        properties = Properties(session_expiry_interval=NEVER) if version == 5 and step.lasts else Properties()
        wire.send(Connect(step.client, version, step.clean, 0, None, None, None, properties))
        connack = wire.receive()
        assert isinstance(connack, ConnAck), connack
        wire.seen.append(("ConnAck", connack.session_present, int(connack.reason)))
        if old is not None:
            old.stream.close()
        self._wires[step.client] = wire
        self._used.add(step.client)
        return wire

    def _packet(self, step: Ask | Forget | Say, wire: Wire) -> Packet:
        if isinstance(step, Forget):
            return Unsubscribe(wire.next_id(), (step.filter,))
        if isinstance(step, Say):
            self._topics.add(step.topic)
            payload = b"" if step.payload == 0 else str(step.payload).encode()
            return Publish(step.topic, payload, step.qos, step.retain, False, wire.next_id() if step.qos else 0)
        if wire.version < 5:
            return Subscribe(wire.next_id(), (SubscriptionRequest(step.filter, step.qos),))
        # Mosquitto keeps the No Local and Retain As Published of a filter's first SUBSCRIBE; ours takes the new ones [MQTT5-3.8.4-3]. So
        # they stay the same here, which test_subscribe.py does not let them.
        first = self._options.setdefault((step.client, step.filter), step)
        request = SubscriptionRequest(step.filter, step.qos, first.no_local, first.retain_as_published, step.retain_handling)
        return Subscribe(wire.next_id(), (request,), Properties(subscription_identifiers=(step.identifier,) if step.identifier else ()))

    def _gather(self, first: str) -> dict[str, list[Event]]:
        order = sorted(self._wires, key=lambda name: (name != first, name))
        busy = True
        while busy:
            busy = sum(self._wires[name].settle() for name in order) > 0
        found = {}
        for name in order:
            found[name], self._wires[name].seen = self._wires[name].seen, []
        return found

    def _tidy(self) -> None:
        """Leave nothing in the broker for the next scenario."""
        for wire in self._wires.values():
            wire.stream.close()
        for name in self._used:
            wire = Wire(self._dial(), VERSIONS[name])
            wire.send(Connect(name, wire.version))
            wire.receive()
            for topic in sorted(self._topics) if name == min(self._used) else ():
                wire.send(Publish(topic, b"", 0, True))
            wire.settle()
            wire.send(Disconnect())
            wire.stream.close()


# ---- what may differ ----


def normal(seen: list[Event]) -> tuple[list[Event], dict[Event, int]]:
    """(what is left to compare, the QoS of each message in it).

    - Copies of one message for overlapping subscriptions count as one, at the highest QoS, with all identifiers: how many are sent
      is free [MQTT5-3.3.4-2, -4, -5].
    - The order between topics is promised to nobody [MQTT5-4.6.0-5], so what one step brings is sorted by topic.
    """
    found = [event for event in seen if event[0] != "message"]
    copies: dict[Event, list[Event]] = {}
    for event in seen:
        if event[0] == "message":
            copies.setdefault(event[:3], []).append(event)
    highest: dict[Event, int] = {}
    for key, some in sorted(copies.items()):
        identifiers = sorted({identifier for one in some for identifier in one[6]})
        found.append((*key, any(one[4] for one in some), any(one[5] for one in some), *identifiers))
        highest[key] = max(one[3] for one in some)
    return found, highest


def compare(step: Step, theirs: dict[str, list[Event]], ours: dict[str, list[Event]]) -> str | None:
    """How two records of one step differ, or None."""
    for name, version in VERSIONS.items():
        their_events, their_qos = normal(theirs.get(name, []))
        our_events, our_qos = normal(ours.get(name, []))
        if our_events != their_events:
            return f"{step}: {name} sees {our_events}, from Mosquitto {their_events}"
        for key, qos in their_qos.items():
            # Mosquitto sends a 3.1.1 client the copy of whichever subscription it comes to first; the highest is right [MQTT311-3.3.5-1].
            if our_qos[key] != qos and (version >= 5 or our_qos[key] < qos):
                return f"{step}: {name} sees {key} at QoS {our_qos[key]}, from Mosquitto at {qos}"
    return None


# ---- the two brokers ----


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dial]:
    program = find_program("mosquitto", "mosquitto")
    folder = tmp_path_factory.mktemp("mosquitto")
    path = folder / "s"
    config = folder / "mosquitto.conf"
    # A Unix socket needs no free port; queues without bounds, as no scenario is long.
    config.write_text(f"user root\nlistener 0 {path}\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n", encoding="utf-8")
    with subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield unix_dialler(path, process)
        finally:
            process.terminate()


def unix_dialler(path: Path, process: subprocess.Popen[bytes]) -> Dial:
    def dial() -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + WAIT_S
        while True:
            try:
                stream.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                assert process.poll() is None, "mosquitto has ended"
                assert time.monotonic() < until, "mosquitto does not listen"
                time.sleep(0.01)  # it has no other way to say that it is ready
            else:
                return stream

    return dial


@pytest.fixture(scope="module")
def ours() -> Iterator[Dial]:
    with broker_thread() as broker:
        yield tcp_dialler(broker)


def tcp_dialler(broker: BrokerThread) -> Dial:
    return lambda: socket.create_connection((broker.host, broker.port), WAIT_S)


@given(scenario=st.lists(steps, min_size=4, max_size=25))
@settings(
    derandomize=True,
    database=None,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_client_sees_the_same(scenario: list[Step], mosquitto: Dial, ours: Dial) -> None:
    whole = BEGINNING + scenario
    theirs = Play(mosquitto).run(whole)
    mine = Play(ours).run(whole)
    for step, one, other in zip(whole, theirs, mine, strict=True):
        difference = compare(step, one, other)
        assert difference is None, difference
