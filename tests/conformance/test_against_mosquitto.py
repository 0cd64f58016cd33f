"""The same scenarios, made up by Hypothesis, against Mosquitto and against our broker: every client must see the same.

What the standard leaves open is brought to one form before it is compared (`merged`, `answer`), each with its statement. What
Mosquitto does and the standard forbids is not generated; those scenarios stand below by hand, with the statement that proves us right.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import open_broker
from broker.reasons import ReasonCode
from broker.wire.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
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
    WillMessage,
)
from tests.conformance.harness import V5, V311
from tests.conformance.wire_client import WireClient, goodbye, settle
from tests.conftest import find_program

EXAMPLES = int(os.environ.get("BROKER_MOSQUITTO_EXAMPLES", "30"))
SCENARIO_SECONDS_MAX = 20.0
START_ATTEMPTS = 5
SHARE = "$share/"
# Without duplicates it sends one copy with the QoS, flags and identifier of the subscription it finds first, where the standard asks for the highest
# QoS and all identifiers [MQTT5-3.3.4-2, -4] [MQTT311-3.3.5-1]; with them, one for each, which the standard allows.
CONFIG = """
listener {port} 127.0.0.1
allow_anonymous true
allow_duplicate_messages true
max_inflight_messages 100
persistence false
connection_messages false
sys_interval 0
log_dest stderr
log_type notice
log_type information
"""


# ---- Mosquitto ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mosquitto_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Debian's mosquitto on a free port, until the module is done."""
    program = find_program("mosquitto", "mosquitto")
    folder = tmp_path_factory.mktemp("mosquitto")
    for _ in range(START_ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        process = start_mosquitto(program, folder, port)
        if process is not None:
            break
    else:
        pytest.fail("mosquitto did not start")
    yield port
    process.terminate()
    process.communicate(timeout=10)  # reads its log to the end and closes the pipe


def start_mosquitto(program: str, folder: Path, port: int) -> subprocess.Popen[str] | None:
    """None if it ended at once, as it does when somebody else took the port meanwhile."""
    config = folder / "mosquitto.conf"
    config.write_text(CONFIG.format(port=port))
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "running" in line:
            return process
    process.wait()
    process.stderr.close()
    return None


# ---- scenarios ---------------------------------------------------------------------------------------------------------


class Join(NamedTuple):
    """CONNECT; where the client is there already, a takeover. lasts: the Session outlives the connection."""

    who: int
    version: int
    clean: bool
    lasts: bool
    answers: bool
    will: tuple[str, int, bool] | None
    receive_maximum: int | None


class Leave(NamedTuple):
    who: int
    how: str


class Ask(NamedTuple):
    who: int
    requests: tuple[SubscriptionRequest, ...]
    identifier: int


class Unask(NamedTuple):
    who: int
    filters: tuple[str, ...]


class Say(NamedTuple):
    who: int
    topic: str
    qos: int
    retain: bool
    empty: bool
    properties: Properties


Step = Join | Leave | Ask | Unask | Say

WHO = st.integers(0, 2)
TOPICS = st.sampled_from(["t/a", "t/b", "t", "t/a/b", "u/a", "t/", "/t"])
FILTERS = st.sampled_from(["t/a", "t/b", "t/+", "t/#", "#", "+/a", "t", "t/a/#", "+/+", "+", "+/+/#", "t/", "/+", "$share/t/#", "$share/t/a"])
QOS = st.integers(0, 2)
REQUESTS = st.builds(SubscriptionRequest, FILTERS, QOS, st.booleans(), st.booleans(), st.integers(0, 2))
PROPERTIES = st.sampled_from(
    [
        Properties(),
        Properties(content_type="text/x", user_properties=(("b", "1"), ("a", "2"), ("b", "1"))),
        Properties(response_topic="r/t", correlation_data=b"\x00\xff", payload_format_indicator=1),
        Properties(message_expiry_interval=10_000),
    ]
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        Join,
        WHO,
        st.sampled_from([V5, V311]),
        st.booleans(),
        st.booleans(),
        st.sampled_from([True, True, True, False]),
        st.one_of(st.none(), st.tuples(TOPICS, QOS, st.booleans())),
        st.sampled_from([None, None, 1, 2]),
    ),
    st.builds(Leave, WHO, st.sampled_from(["DISCONNECT", "0x04", "lost"])),
    st.builds(Ask, WHO, st.lists(REQUESTS, min_size=1, max_size=3, unique_by=lambda request: request.filter).map(tuple), st.integers(0, 3)),
    st.builds(Unask, WHO, st.lists(FILTERS, min_size=1, max_size=2, unique=True).map(tuple)),
    st.builds(Say, WHO, TOPICS, QOS, st.booleans(), st.sampled_from([False, False, False, True]), PROPERTIES),
)
# Everybody comes and asks for something first, so that few messages are for nobody.
SCENARIOS = st.tuples(
    st.lists(
        st.builds(Join, WHO, st.sampled_from([V5, V311]), st.just(True), st.booleans(), st.just(True), st.none(), st.none()), min_size=2, max_size=3
    ),
    st.lists(STEPS, min_size=12, max_size=40),
).map(lambda halves: [*halves[0], *halves[1]])


class Stage:
    """Plays one scenario against one broker; `views` has what each connection saw, step by step."""

    def __init__(self, port: int, nursery: trio.Nursery, prefix: str) -> None:
        self.port = port
        self.nursery = nursery
        self.prefix = prefix
        self.clients: list[WireClient | None] = [None, None, None]
        self.wills = [False, False, False]
        self.options: dict[tuple[int, str], tuple[bool, bool]] = {}
        self.connections: list[WireClient] = []
        self.views: list[list[object]] = []
        self._count = 0

    async def play(self, scenario: list[Step]) -> None:
        for step in scenario:
            self._count += 1
            marks = [len(client.seen) for client in self.connections]
            if await self._do(step):
                await settle(self.connections)
            marks += [0] * (len(self.connections) - len(marks))
            resumed = isinstance(step, Join)
            self.views.append([self._view(client, mark, resumed) for client, mark in zip(self.connections, marks, strict=True)])

    async def _do(self, step: Step) -> bool:
        client = self.clients[step.who]
        if isinstance(step, Join):
            if client is not None and not client.closed.is_set() and self.wills[step.who]:
                return False  # the Will of a connection that is taken over: see below
            await self._join(step)
        elif client is None or client.closed.is_set():
            return False
        elif isinstance(step, Leave):
            await self._leave(client, step)
        elif isinstance(step, Ask):
            requests = self._requests(client, step)
            identifiers = (step.identifier,) if step.identifier else ()
            if requests:
                await client.send(Subscribe(self._count, requests, Properties(subscription_identifiers=identifiers)))
        elif isinstance(step, Unask):
            await client.send(Unsubscribe(self._count, tuple(self._filter(step.who, filter) for filter in step.filters)))
        else:
            payload = b"" if step.empty else b"%d" % self._count
            await client.send(
                Publish(self._named(step.topic), payload, step.qos, step.retain, False, self._count if step.qos else 0, step.properties)
            )
        return True

    def _named(self, topic: str) -> str:
        return f"{self.prefix}/{topic}"

    def _filter(self, who: int, filter: str) -> str:
        """A share of one member each: who gets a message is free where there are more."""
        plain = filter.removeprefix(SHARE)
        return self._named(plain) if plain is filter else f"$share/{who}/{self._named(plain)}"

    def _requests(self, client: WireClient, step: Ask) -> tuple[SubscriptionRequest, ...]:
        requests = []
        for one in step.requests:
            asked = (one.no_local, one.retain_as_published) if client.version == V5 else (False, False)
            # As they were for this filter the first time: Mosquitto does not replace them, see below.
            no_local, retain_as_published = self.options.setdefault((step.who, one.filter), asked)
            filter = self._filter(step.who, one.filter)
            if SHARE in one.filter:
                # Mosquitto sends retained messages to these, unless it is told not to: see below. In 3.1.1 there is no way to tell.
                if client.version == V5:
                    requests.append(SubscriptionRequest(filter, one.qos, False, retain_as_published, 2))
            elif client.version == V5:
                requests.append(SubscriptionRequest(filter, one.qos, no_local, retain_as_published, one.retain_handling))
            elif not (no_local or retain_as_published):
                requests.append(SubscriptionRequest(filter, one.qos))
        return tuple(requests)

    async def _join(self, step: Join) -> None:
        will = None if step.will is None else WillMessage(self._named(step.will[0]), b"will %d" % self._count, step.will[1], step.will[2])
        five = step.version == V5
        # With no quota left a broker may hold QoS 0 back or not (MQTT 5.0, 4.9), so one that never answers has quota enough.
        maximum = step.receive_maximum if step.answers else None
        properties = Properties(session_expiry_interval=1_000 if step.lasts else None, receive_maximum=maximum) if five else Properties()
        clean = step.clean if five else not step.lasts
        connect = Connect(f"{self.prefix}-{step.who}", step.version, clean, 600, will, properties=properties)
        client = await WireClient.open(self.nursery, self.port, connect, step.answers)
        self.clients[step.who] = client
        self.wills[step.who] = will is not None
        self.connections.append(client)

    async def _leave(self, client: WireClient, step: Leave) -> None:
        if step.how == "lost" or (step.how == "0x04" and client.version != V5):
            await client.drop()
        else:
            await client.send(Disconnect(ReasonCode(0x04) if step.how == "0x04" else ReasonCode.SUCCESS))
            await client.closed.wait()

    def _view(self, client: WireClient, mark: int, resumed: bool) -> object:
        seen = client.seen[mark:]
        prefix = len(self.prefix) + 1
        return (
            sorted(answer(packet) for packet in seen if not isinstance(packet, (Publish, PubRel, Disconnect))),
            merged([packet for packet in seen if isinstance(packet, Publish)], prefix, resumed),
            None if goodbye(seen) == ReasonCode.SESSION_TAKEN_OVER else goodbye(seen),  # [MQTT5-3.1.4-3], see below
            client.closed.is_set(),
        )


def answer(packet: Packet) -> tuple[str, object, object]:
    """An acknowledgement as it is compared. 0x10, "no matching subscribers", may be said or not (MQTT 5.0, 3.4.2.1)."""
    if isinstance(packet, ConnAck):
        return "CONNACK", packet.session_present, int(packet.reason)
    if isinstance(packet, (SubAck, UnsubAck)):
        return type(packet).__name__, packet.packet_id, tuple(map(int, packet.reasons))
    assert isinstance(packet, (PubAck, PubRec, PubComp)), packet
    return type(packet).__name__, packet.packet_id, 0 if packet.reason == ReasonCode.NO_MATCHING_SUBSCRIBERS else int(packet.reason)


def merged(messages: list[Publish], prefix: int, resumed: bool) -> dict[str, list[object]]:
    """Messages by topic, in order. Where subscriptions overlap a broker may send one copy for all of them or one for each [MQTT5-3.3.4-2]:
    the copies of a step are taken together, at the highest QoS, with all identifiers. resumed: of copies that waited in a Session only those
    of QoS 1 and 2 are left, so identifiers and flags differ lawfully."""
    by_topic: dict[str, dict[bytes, list[Publish]]] = {}
    for message in messages:
        by_topic.setdefault(message.topic[prefix:], {}).setdefault(message.payload, []).append(message)
    return {topic: [together(copies, resumed) for copies in payloads.values()] for topic, payloads in by_topic.items()}


def together(copies: list[Publish], resumed: bool) -> object:
    first = copies[0].properties
    expiry_s = first.message_expiry_interval
    return (
        copies[0].payload,
        max(copy.qos for copy in copies),
        not resumed and any(copy.retain for copy in copies),
        any(copy.dup for copy in copies),
        [] if resumed else sorted(identifier for copy in copies for identifier in copy.properties.subscription_identifiers),
        (first.content_type, first.user_properties, first.response_topic, first.correlation_data, first.payload_format_indicator),
        None if expiry_s is None else expiry_s > 9_900,
    )


async def watch(port: int, scenario: list[Step], prefix: str) -> list[list[object]]:
    """What every connection saw at each step."""
    with trio.fail_after(SCENARIO_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            stage = Stage(port, nursery, prefix)
            await stage.play(scenario)
            nursery.cancel_scope.cancel()
    return stage.views


async def compare(mosquitto_port: int, scenario: list[Step], prefix: str) -> None:
    theirs = await watch(mosquitto_port, scenario, prefix)
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker:
        ours = await watch(int(broker.urls[0].rpartition(":")[2]), scenario, prefix)
    for number, step in enumerate(scenario):
        assert ours[number] == theirs[number], f"step {number}, {step}: ours, and Mosquitto's"


_played = iter(range(10**9))


@settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenario=SCENARIOS)
def test_every_client_sees_the_same(mosquitto_port: int, scenario: list[Step]) -> None:
    # A prefix of its own: sessions and retained messages of another scenario are not its business.
    trio.run(compare, mosquitto_port, scenario, f"s{os.getpid()}-{next(_played)}")


# ---- where Mosquitto (2.0.11) and the standard differ ------------------------------------------------------------------


async def ours_of(scenario: list[Step]) -> list[list[object]]:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker:
        return await watch(int(broker.urls[0].rpartition(":")[2]), scenario, "s")


def five(who: int, *, clean: bool = True, lasts: bool = False, will: tuple[str, int, bool] | None = None) -> Join:
    return Join(who, V5, clean, lasts, True, will, None)


def messages(view: object) -> dict[str, list[tuple[object, ...]]]:
    """Of one connection at one step."""
    assert isinstance(view, tuple)
    found: dict[str, list[tuple[object, ...]]] = view[1]
    return found


def ask(who: int, *requests: SubscriptionRequest, identifier: int = 0) -> Ask:
    return Ask(who, requests, identifier)


def say(who: int, topic: str, qos: int = 0, *, retain: bool = False) -> Say:
    return Say(who, topic, qos, retain, False, Properties())


KNOWN_DIFFERENCES = {
    "Mosquitto closes the connection that is taken over without a DISCONNECT": "MQTT5-3.1.4-3",
    "Mosquitto publishes no Will of a connection that is taken over, where its Session goes on": "MQTT5-3.1.2-8",
    "Mosquitto keeps No Local and Retain As Published of the subscription that is replaced": "MQTT5-3.8.4-3",
    "Mosquitto sends retained messages to a new shared subscription": "MQTT5-3.3.1-9 (and 4.8.2 of MQTT 5.0)",
    "Mosquitto, without duplicates, delivers at the QoS of the subscription it finds first": "MQTT5-3.3.4-2, MQTT311-3.3.5-1",
    "Mosquitto, without duplicates, leaves out the identifiers of all subscriptions but the one it finds first": "MQTT5-3.3.4-4",
}


@pytest.mark.real_clock
@pytest.mark.statement("MQTT5-3.1.4-3")
async def test_takeover_is_told() -> None:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker, trio.open_nursery() as nursery:
        port = int(broker.urls[0].rpartition(":")[2])
        old = await WireClient.open(nursery, port, Connect("a"), True)
        await WireClient.open(nursery, port, Connect("a"), True)
        await old.closed.wait()
        assert goodbye(old.seen) == ReasonCode.SESSION_TAKEN_OVER
        nursery.cancel_scope.cancel()


@pytest.mark.real_clock
@pytest.mark.statement("MQTT5-3.1.2-8")
async def test_the_will_of_a_connection_that_is_taken_over_goes_out() -> None:
    views = await ours_of([five(0), ask(0, SubscriptionRequest("t")), five(1, lasts=True, will=("t", 0, False)), Leave(1, "lost")])
    assert [one[0] for one in messages(views[3][0])["t"]] == [b"will 3"]
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker, trio.open_nursery() as nursery:
        port = int(broker.urls[0].rpartition(":")[2])
        watcher = await WireClient.open(nursery, port, Connect("watcher"), True)
        await watcher.send(Subscribe(1, (SubscriptionRequest("t"),)))
        lasting = Properties(session_expiry_interval=100)
        await WireClient.open(nursery, port, Connect("a", will=WillMessage("t", b"x"), properties=lasting), True)
        again = await WireClient.open(nursery, port, Connect("a", clean_start=False, properties=lasting), True)
        await settle([watcher, again])
        assert [packet.payload for packet in watcher.seen if isinstance(packet, Publish)] == [b"x"]
        nursery.cancel_scope.cancel()


@pytest.mark.real_clock
@pytest.mark.statement("MQTT5-3.8.4-3")
async def test_all_options_are_replaced() -> None:
    first = SubscriptionRequest("t", 0, no_local=True, retain_as_published=True)
    stage: list[Step] = [five(0), five(1), ask(0, first), say(0, "t"), say(1, "t", retain=True)]
    views = await ours_of(stage)
    assert messages(views[3][0]) == {}
    assert messages(views[4][0])["t"][0][2] is True
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker, trio.open_nursery() as nursery:
        client = await WireClient.open(nursery, int(broker.urls[0].rpartition(":")[2]), Connect("a"), True)
        await client.send(Subscribe(1, (first,)), Subscribe(2, (SubscriptionRequest("t"),)), Publish("t", b"x", retain=True))
        await settle([client])
        assert [(packet.payload, packet.retain) for packet in client.seen if isinstance(packet, Publish)] == [(b"x", False)]
        nursery.cancel_scope.cancel()


@pytest.mark.real_clock
async def test_a_share_gets_no_retained_messages() -> None:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker, trio.open_nursery() as nursery:
        client = await WireClient.open(nursery, int(broker.urls[0].rpartition(":")[2]), Connect("a"), True)
        await client.send(Publish("t", b"kept", retain=True), Subscribe(1, (SubscriptionRequest("$share/g/t"),)))
        await settle([client])
        assert [type(packet) for packet in client.seen] == [ConnAck, SubAck]
        nursery.cancel_scope.cancel()


@pytest.mark.real_clock
@pytest.mark.statement("MQTT5-3.3.4-2", "MQTT5-3.3.4-4")
async def test_an_overlap_is_one_copy_at_the_highest_qos_with_all_identifiers() -> None:
    stage: list[Step] = [five(0), ask(0, SubscriptionRequest("+/a", 0), identifier=1), ask(0, SubscriptionRequest("t/#", 2), identifier=2)]
    views = await ours_of([*stage, say(0, "t/a", 2)])
    (message,) = messages(views[3][0])["t/a"]
    assert (message[1], message[4]) == (2, [1, 2])
