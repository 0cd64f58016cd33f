"""A broker with a store that is killed again and again, as a power cut does it, while everybody publishes and comes back: what was acknowledged is
there, and what is to come once comes once.

The clients are paho's, mosquitto's and our own, each left to come back by itself. The moments are seeded: after so many more acknowledgements, in
the middle of whatever is under way then.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import trio
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from broker import Reconnect, connect
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import Connect, WillMessage
from tests.conftest import find_program
from tests.e2e.conftest import listening
from tests.e2e.drivers.properties import session_expiry
from tests.e2e.tools import BROKER, SECONDS_MAX, Program

CRASHES_COUNT = 6
ACKNOWLEDGEMENTS_MAX = 150
"""Between two crashes there are at most so many."""
UNDER_WAY_MAX = 8


class Ledger:
    """What everybody knows, of all threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.acknowledged: set[str] = set()
        self.retained: dict[str, int] = {}
        """The last number that was acknowledged, by topic."""
        self.received: dict[str, Counter[str]] = defaultdict(Counter)
        """By subscriber."""
        self.present: dict[str, list[bool]] = defaultdict(list)
        """Session Present, by client that has a session that lasts."""
        self.over = False

    def note(self, change: Callable[[], Any]) -> None:
        with self.changed:
            change()
            self.changed.notify_all()

    def are_back(self, count: int) -> bool:
        return all(len(present) >= count for present in self.present.values())

    def has_acknowledged(self, count: int) -> bool:
        return len(self.acknowledged) >= count

    def wait_received(self, name: str, owed: set[str]) -> None:
        received = self.received[name]
        with self.changed:
            assert self.changed.wait_for(lambda: not owed - received.keys(), SECONDS_MAX), (
                f"{name} has not got {sorted(owed - received.keys())[:9]}, and twice: {[p for p, c in received.items() if c > 1 and '-2-' in p][:20]}"
            )

    def wait(self, what: str, reached: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(reached, SECONDS_MAX), what


class Server:
    """`broker serve --store`, on one port through all its lives."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.port = 0
        self.program: Program | None = None
        self.up = threading.Event()

    def start(self) -> None:
        self.program = Program([*BROKER, "serve", "--host", "127.0.0.1", "-p", str(self.port), "--store", str(self.store)], listening)
        self.port = self.program.wait("listening")["port"]
        self.up.set()

    def crash(self) -> None:
        assert self.program is not None
        self.up.clear()
        self.program.stop(signal.SIGKILL)
        assert "Traceback" not in "".join(self.program.log), "".join(self.program.log)


@contextmanager
def served(store: Path) -> Iterator[Server]:
    server = Server(store)
    server.start()
    try:
        yield server
    except BaseException:
        server.crash()
        raise
    assert server.program is not None
    server.program.stop(signal.SIGTERM)
    assert server.program.process.returncode == 0, "".join(server.program.log)
    assert "Traceback" not in "".join(server.program.log), "".join(server.program.log)


# ---- paho --------------------------------------------------------------------------------------------------------------


@contextmanager
def paho(ledger: Ledger, server: Server, client_id: str, version: MQTTProtocolVersion, **callbacks: Any) -> Iterator[mqtt.Client]:
    """A client with a session that lasts, which comes back as soon as it can. Not by itself: when a dial of its own fails it forgets that a message
    was received (PUBREC), and sends it once more as a new one (2.1)."""
    five = version == MQTTProtocolVersion.MQTTv5
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, None if five else False, protocol=version, reconnect_on_failure=False)
    client.max_inflight_messages_set(UNDER_WAY_MAX)
    for name, callback in callbacks.items():
        setattr(client, name, callback)
    left = threading.Event()

    def on_connect(client: mqtt.Client, userdata: Any, flags: mqtt.ConnectFlags, reason: Any, properties: Any) -> None:
        assert not reason.is_failure
        ledger.note(lambda: ledger.present[client_id].append(flags.session_present))

    def run() -> None:
        while not left.is_set():
            client.loop_forever()
            if not left.is_set() and server.up.wait(SECONDS_MAX):
                client.reconnect()

    client.on_connect = on_connect
    if five:
        client.connect("127.0.0.1", server.port, clean_start=False, properties=session_expiry(3600))
    else:
        client.connect("127.0.0.1", server.port)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        ledger.wait(f"{client_id} connects", lambda: bool(ledger.present[client_id]))
        yield client
    finally:
        left.set()
        client.disconnect()
        thread.join(SECONDS_MAX)


@contextmanager
def paho_subscriber(ledger: Ledger, server: Server, client_id: str, version: MQTTProtocolVersion) -> Iterator[None]:
    """It subscribes once, and never again."""
    granted = threading.Event()

    def on_message(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        ledger.note(lambda: ledger.received[client_id].update([message.payload.decode()]))

    with paho(ledger, server, client_id, version, on_message=on_message, on_subscribe=lambda *_: granted.set()) as client:
        client.subscribe([("load/#", 2), ("wills", 2)])
        assert granted.wait(SECONDS_MAX)
        yield


@contextmanager
def paho_publisher(ledger: Ledger, server: Server, client_id: str, version: MQTTProtocolVersion, qos: int) -> Iterator[None]:
    """It keeps some messages under way, every fourth of them retained, until it is told that it is enough, and waits for the last one then."""
    numbers = itertools.count(1)
    waiting: dict[int, tuple[str, int]] = {}
    lock = threading.Lock()

    def publish() -> None:
        number = next(numbers)
        retain = number % 4 == 0
        payload = f"{number}" if retain else f"{client_id}-{qos}-{number}"
        with lock:  # its acknowledgement may be here before its number is
            info = client.publish(f"kept/{client_id}" if retain else f"load/{client_id}", payload, qos, retain)
            waiting[info.mid] = (payload, number if retain else 0)

    def on_publish(client: mqtt.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        assert not reason.is_failure or reason.value == ReasonCode.PACKET_IDENTIFIER_NOT_FOUND  # it was released, and that not told any more
        with lock:
            payload, retained = waiting.pop(mid)

        def change() -> None:
            if retained:
                ledger.retained[client_id] = max(retained, ledger.retained.get(client_id, 0))
            else:
                ledger.acknowledged.add(payload)

        ledger.note(change)
        if not ledger.over:
            publish()

    with paho(ledger, server, client_id, version, on_publish=on_publish) as client:
        for _ in range(UNDER_WAY_MAX):
            publish()
        try:
            yield
        finally:
            ledger.wait(f"what {client_id} has under way", lambda: not waiting or not ledger.over)


# ---- mosquitto's and ours ----------------------------------------------------------------------------------------------


@contextmanager
def mosquitto_publisher(ledger: Ledger, program: str, server: Server, qos: int) -> Iterator[None]:
    """One after the other; whoever of them says that it went well was acknowledged."""

    def run() -> None:
        version = ["5", "311"][qos - 1]
        for number in itertools.count(1):
            if ledger.over:
                return
            payload = f"mosquitto-{qos}-{number}"
            server.up.wait(SECONDS_MAX)
            argv = [program, "-p", str(server.port), "-V", version, "-q", str(qos), "-t", "load/mosquitto", "-m", payload]
            done = subprocess.run(argv, capture_output=True, timeout=SECONDS_MAX, check=False)
            if done.returncode == 0:
                ledger.note(partial(ledger.acknowledged.add, payload))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(SECONDS_MAX)


@contextmanager
def mosquitto_subscriber(ledger: Ledger, program: str, port: int) -> Iterator[None]:
    """At QoS 1: at 2 the library, when a message is repeated that it had not released, has it twice, gives the older one out when its Packet
    Identifier comes again, and never the newer one (2.0.11)."""
    name = "mosquitto_sub"

    def parse(line: str) -> dict[str, Any]:
        if line.startswith("payload "):
            ledger.note(lambda: ledger.received[name].update([line.removeprefix("payload ")]))
        return {"event": "subscribed" if "SUBACK" in line else "log"}

    how = ["-V", "311", "-c", "-i", name, "-q", "1", "-t", "load/#", "-t", "wills", "-F", "payload %p", "-d"]
    argv = [find_program("stdbuf", "coreutils"), "-oL", program, "-p", str(port), *how]
    hearing = Program(argv, parse)
    try:
        hearing.wait("subscribed")
        yield
    finally:
        hearing.stop(signal.SIGKILL)


@contextmanager
def own_publisher(ledger: Ledger, port: int) -> Iterator[None]:
    """Our own client, at QoS 1 and 2 in turn."""

    async def main() -> None:
        how = Reconnect(delay_s=0.05, delay_s_max=0.2)
        async with (
            connect(f"mqtt://127.0.0.1:{port}", client_id="own", clean_start=False, session_expiry_s=3600, reconnect=how) as client,
            trio.open_nursery() as nursery,
        ):
            for lane in range(UNDER_WAY_MAX):
                nursery.start_soon(publish, client, lane)

    async def publish(client: Any, lane: int) -> None:
        for number in itertools.count(1):
            if ledger.over:
                return
            qos = 1 + number % 2
            payload = f"own{lane}-{qos}-{number}"
            await client.publish("load/own", payload, qos=qos)
            ledger.note(partial(ledger.acknowledged.add, payload))

    failures: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # the test's thread raises it
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(SECONDS_MAX)
        for failure in failures:
            raise failure


# ---- the test ----------------------------------------------------------------------------------------------------------


@contextmanager
def mortal(port: int, number: int) -> Iterator[None]:
    """Connected, with a Will, when the broker dies; it dies with it."""
    with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as peer:
        peer.sendall(encode(Connect(f"mortal{number}", 5, will=WillMessage("wills", b"will-2-%d" % number, 2, False)), 5))
        assert peer.recv(100)[:1] == b"\x20"
        yield


def retained_values(port: int) -> dict[str, int]:
    """As a stranger finds them."""
    found: dict[str, int] = {}
    done = threading.Event()

    def on_message(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == "all/there":
            done.set()
        elif message.retain:
            found[message.topic.removeprefix("kept/")] = int(message.payload)

    client = mqtt.Client(CallbackAPIVersion.VERSION2)

    def on_subscribe(*_: Any) -> None:
        client.publish("all/there", b"1")

    client.on_message = on_message
    client.on_subscribe = on_subscribe
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.subscribe([("kept/#", 1), ("all/there", 0)])
        assert done.wait(SECONDS_MAX)
    finally:
        client.disconnect()
        client.loop_stop()
    return found


def crash_again_and_again(server: Server, ledger: Ledger, random: Random, mosquitto_pub: str, mosquitto_sub: str) -> None:
    five, three = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
    with ExitStack() as stack:
        stack.enter_context(paho_subscriber(ledger, server, "sub5", five))
        stack.enter_context(paho_subscriber(ledger, server, "sub311", three))
        stack.enter_context(mosquitto_subscriber(ledger, mosquitto_sub, server.port))
        with ExitStack() as publishers:
            publishers.callback(ledger.note, lambda: setattr(ledger, "over", True))
            for version, qos in itertools.product((five, three), (1, 2)):
                publishers.enter_context(paho_publisher(ledger, server, f"paho{version}{qos}", version, qos))
            publishers.enter_context(own_publisher(ledger, server.port))
            publishers.enter_context(mosquitto_publisher(ledger, mosquitto_pub, server, 1))
            publishers.enter_context(mosquitto_publisher(ledger, mosquitto_pub, server, 2))
            for number in range(CRASHES_COUNT):
                with mortal(server.port, number):
                    # Who of paho's dials again before it is answered forgets as much as who dialled in vain.
                    ledger.wait(f"all are back before crash {number}", partial(ledger.are_back, number + 1))
                    goal = len(ledger.acknowledged) + random.randint(1, ACKNOWLEDGEMENTS_MAX)
                    ledger.wait(f"acknowledgements before crash {number}", partial(ledger.has_acknowledged, goal))
                    server.crash()
                with ledger.changed:
                    promised = dict(ledger.retained)
                server.start()
                found = retained_values(server.port)
                for name, value in promised.items():
                    assert found[name] >= value
            publishers.callback(ledger.note, lambda: setattr(ledger, "over", True))
        for name in ("sub5", "sub311", "mosquitto_sub"):
            ledger.wait_received(name, ledger.acknowledged | {f"will-2-{number}" for number in range(CRASHES_COUNT)})
        assert retained_values(server.port) == ledger.retained


@pytest.mark.parametrize("seed", [int(os.environ.get("BROKER_CRASH_SEED", "1"))])
def test_what_was_acknowledged_outlives_every_crash(seed: int, tmp_path: Path, mosquitto_pub: str, mosquitto_sub: str) -> None:
    ledger = Ledger()
    with served(tmp_path / "store") as server:
        crash_again_and_again(server, ledger, Random(seed), mosquitto_pub, mosquitto_sub)
    twice = {
        name: sorted(payload for payload, count in received.items() if count > 1 and re.search(r"-2-\d+$", payload))
        for name, received in ledger.received.items()
        if name != "mosquitto_sub"
    }
    assert not any(twice.values()), twice
    for name, present in ledger.present.items():
        assert present == [False] + [True] * (len(present) - 1), name
    assert len(ledger.present["sub5"]) > CRASHES_COUNT
