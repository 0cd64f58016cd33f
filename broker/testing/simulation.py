"""A whole broker in virtual time: the pure engine, simulated clients, faulty connections between them, and the books of what was promised.

`simulate(script)` runs one script to its end: the steps; then the network heals, everybody who has a session comes back and reads;
then the books are checked; then the broker shuts down and nothing may be left. The same script gives the same bytes at the same
times, which `Outcome.digest` shows.
"""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import Any, Final

import msgspec

from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import Link
from broker.core.message import ApplicationMessage
from broker.core.observer import Observer
from broker.reasons import ReasonCode
from broker.testing.audit import Audit
from broker.testing.client import EXPECTED_GOODBYES, SimulatedClient
from broker.testing.incarnations import Incarnations
from broker.testing.ledger import BrokenPromise, Ledger, Note, WillView
from broker.testing.own import OwnClient
from broker.testing.script import ClientSpec, Script, Step
from broker.testing.shelf import Shelf
from broker.testing.surroundings import PERFECT, Surroundings
from broker.testing.timeline import Timeline
from broker.testing.wire import Faults, Line
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, ConnAck, Disconnect, Properties, Publish, WillMessage

TIGHT_BYTES: Final = 100_000
"""With less memory two packets that are coming in may find no place."""
HALF_PACKET: Final = encode(Publish("a/1", bytes(5_000)), MQTT_311)[:4_500]
"""Whoever is gone without a word goes in the middle of a packet."""
RECONNECT_S: Final = 2.0311
HEALING_S: Final = 200.0

WITNESS: Final = ClientSpec("witness", MQTT_5)
CHECKER: Final = ClientSpec("checker", MQTT_5, "staff")


class Outcome(msgspec.Struct, frozen=True):
    script: Script
    fault: str
    """What promise was broken, or "" for none."""
    digest: str
    """Of every byte that either side got, and when."""
    messages_count: int
    receipts_count: int
    virtual_s: float


class _Watch(Observer):
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def connected(self, link: Link) -> None:
        line = link.transport
        assert isinstance(line, Line)
        self.simulation.surroundings.accepted(line)

    def violation(self, link: Link, cause: str) -> None:
        if not cause.startswith("the stream ended inside a packet"):
            self.simulation.fail(f"{link.client_id} kept the rules, and was told that it {cause}")

    def dropped(self, client_id: str, reason: str, count: int) -> None:
        if reason == "unacknowledged":
            return  # it was sent; what may be missing at a session's end the books know better
        counted = self.simulation.ledger.dropped.setdefault(client_id, {})
        counted[reason] = counted.get(reason, 0) + count


class Simulation:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.random = Random(script.seed * 7 + 1)
        self.timeline = Timeline(self.random)
        self.ledger = Ledger(script.access_rules, "refuse" in script.overflow.values())
        self.limits = Limits(**script.limits)
        self.maximum_qos = self.limits.maximum_qos
        self.serial = 0
        self.failure = ""
        self.uses_retain_as_published = any(step[0] == "subscribe" and step[2].get("retain_as_published") for step in script.steps)
        numbers = itertools.count(1)
        self._new_client_id = lambda: f"assigned-{next(numbers)}"
        self.shelf = Shelf() if script.lasting else None
        """What outlives a crash of the broker."""
        self.engine = self._new_engine()
        self.surroundings = Surroundings(self, self.engine, self.timeline)
        self.faults: dict[int, Faults] = {}
        self.reading: dict[int, bool] = {}
        self.clients = [(OwnClient if spec.own else SimulatedClient)(self, index, spec) for index, spec in enumerate(script.clients)]
        self.witness = SimulatedClient(self, len(self.clients), WITNESS)
        self.checker = SimulatedClient(self, len(self.clients) + 1, CHECKER)
        self.everybody = [*self.clients, self.witness, self.checker]
        self.incarnations = Incarnations(self)
        self.audit = Audit(self.engine.state, self.limits, self.fail)
        self._over = False
        self._asked_to: dict[SimulatedClient, dict[str, Any]] = {}
        """How each client connected the last time."""

    def _new_engine(self) -> Engine:
        script = self.script
        return Engine(
            self.limits,
            new_client_id=self._new_client_id,
            asks_authentication=script.asks_authentication,
            authorize=self._authorize if script.access_rules else None,
            observer=_Watch(self),
            overflow=script.overflow,
            lasting=script.lasting,
        )

    @property
    def now(self) -> float:
        return self.timeline.now

    def fail(self, what: str) -> None:
        """Noted, since it may come up in the middle of the engine's work; raised at the next safe place."""
        self.failure = self.failure or what

    def _authorize(self, username: str | None, client_id: str, action: str, topic: str) -> bool:
        return action == "subscribe" or self.ledger.may_use(username, topic)

    # ---- what clients report ----

    def check_refusal(self, client: SimulatedClient, packet: ConnAck) -> None:
        tight = self.limits.memory_bytes_max < TIGHT_BYTES
        if tight and self._asked_to[client].get("will") and packet.reason in (ReasonCode.QUOTA_EXCEEDED, ReasonCode.SERVER_UNAVAILABLE):
            return  # there was no place for its Will
        raise BrokenPromise(f"{client.client_id} was refused with {packet.reason!r}: {packet.properties.reason_string}")

    def check_goodbye(self, client: SimulatedClient, packet: Disconnect) -> None:
        expected = set(EXPECTED_GOODBYES)
        if "disconnect" in self.script.overflow.values() or self.limits.memory_bytes_max < TIGHT_BYTES:
            expected.add(ReasonCode.QUOTA_EXCEEDED)
        if packet.reason not in expected:
            raise BrokenPromise(f"{client.client_id} kept the rules and got DISCONNECT {packet.reason!r}: {packet.properties.reason_string}")

    def check_session_present(self, line: Line, present: bool) -> None:
        expected = self.incarnations.expected_present.get(line)
        if expected is not None and expected != present:
            raise BrokenPromise(f"connection {line.number}: session present is {present}, expected {expected}")

    def check_refused_publish(self, client: SimulatedClient, note: Note, reason: ReasonCode) -> None:
        if reason == ReasonCode.NOT_AUTHORIZED and not self.ledger.may_use(client.spec.username, note.topic):
            return
        if reason == ReasonCode.QUOTA_EXCEEDED:
            return
        raise BrokenPromise(f"{note.key} on {note.topic} was refused with {reason!r}")

    # ---- steps ----

    def connect(self, client: SimulatedClient, how: dict[str, Any]) -> None:
        if client.line is not None:
            self._abandon(client, client.line)
        will: WillMessage | None = None
        view: WillView | None = None
        asked = how.get("will")
        is_5 = client.version >= MQTT_5
        clean = client.wants_clean(bool(how["clean"]))
        expiry_s = float(how["expiry_s"]) if is_5 else (0.0 if clean else math.inf)
        expiry_s = min(expiry_s, self.limits.session_expiry_s_max)
        if asked:
            note = self.ledger.new_note(client.client_id, f"will/{client.client_id}", min(asked["qos"], self.maximum_qos), asked["retain"], 0)
            delay_s = asked["delay_s"] if is_5 else 0
            properties = Properties(will_delay_interval=delay_s) if delay_s else NO_PROPERTIES
            will = WillMessage(note.topic, note.payload, note.qos, note.retain, properties)
            view = WillView(note, delay_s)
            self.ledger.wills.append(view)
        self.serial += 1
        self._asked_to[client] = how
        client.connect(clean, int(how["expiry_s"]), will)
        assert client.line is not None
        self.incarnations.asks(client.line, clean, expiry_s, view)
        wanted_s = client.spec.keep_alive_s
        most_s = self.limits.keepalive_s_max
        if client.version >= MQTT_5 and most_s < 65_535 and not 0 < wanted_s <= most_s:
            wanted_s = most_s  # as Server Keep Alive will say
        if wanted_s:
            self._keep_alive(client, client.line, wanted_s * 0.8)

    def _keep_alive(self, client: SimulatedClient, line: Line, interval_s: float) -> None:
        def ping() -> None:
            if client.line is line:
                client.ping()
                self._keep_alive(client, line, interval_s)

        self.timeline.at(self.now + interval_s, ping)

    def lost(self, client: SimulatedClient) -> None:
        """A client that comes back by itself has lost its connection."""
        how = {**self._asked_to[client], "clean": client.version < MQTT_5 and self._asked_to[client]["clean"]}
        line_count = len(self.surroundings.lines)

        def again() -> None:
            if not self._over and client.line is None and not any(line.client_index == client.index for line in self.surroundings.lines[line_count:]):
                self.serial += 1
                self.connect(client, how)

        self.timeline.at(self.now + RECONNECT_S, again)

    def _abandon(self, client: SimulatedClient, line: Line) -> None:
        """The client has forgotten this connection; the other side may find out for itself."""
        if not client.connected:
            self.surroundings.detach(line)  # or its CONNECT might be accepted after the next one's, when somebody has to be asked who it is
        line.down.frozen = True
        client.disconnected()

    def step(self, step: Step) -> None:
        kind, index, how = step
        client = self.clients[index % len(self.clients)]
        self.serial += 1
        if kind == "wait":
            self.timeline.run_until(self.now + how["seconds"])
        elif kind == "connect":
            self.connect(client, how)
        elif kind == "network":
            self.faults[client.index] = faults = Faults(**how)
            if client.line is not None:
                client.line.up.faults = client.line.down.faults = faults
        elif kind == "read":
            self._read(client, how["on"])
        elif kind == "hold":
            client.hold(how["on"])
        elif kind == "server_publish":
            self._server_publish(how)
        elif kind == "crash":
            self._crash()
        elif kind == "kick":
            self.engine.disconnect(client.client_id, ReasonCode.ADMINISTRATIVE_ACTION, self.now)
            self.surroundings.settle()
        elif client.connected:
            self._act(kind, client, how)

    def _act(self, kind: str, client: SimulatedClient, how: dict[str, Any]) -> None:
        """What only a connected client does."""
        if kind in ("publish", "flood"):
            for _ in range(how["count"]):
                clear = how["clear"] and how["retain"]
                note = self.ledger.new_note(client.client_id, how["topic"], min(how["qos"], self.maximum_qos), how["retain"], how["size"], clear)
                note.at = self.now
                if how["expiry_s"] is not None and client.version >= MQTT_5:
                    note.expires_at = self.now + how["expiry_s"]
                client.publish(note, how["alias"])
        elif kind == "subscribe":
            client.subscribe(how)
        elif kind == "unsubscribe":
            client.unsubscribe(how["filter"])
        elif kind == "ping":
            client.ping()
        elif kind == "disconnect":
            self._disconnect(client, how["how"])

    def _disconnect(self, client: SimulatedClient, how: str) -> None:
        line = client.line
        assert line is not None
        if how == "clean":
            client.say_goodbye()
            self.incarnations.says_goodbye(line)
        client.disconnected()
        line.down.frozen = True
        if how == "half-open":
            line.up.send(HALF_PACKET)
        if how == "cut":
            line.up.kill()
            line.down.kill()
            self.surroundings.detach(line)
        elif how != "half-open":
            line.up.send(b"")

    def _read(self, client: SimulatedClient, on: bool) -> None:
        self.reading[client.index] = on
        if client.line is not None:
            client.line.down.frozen = not on
            client.line.was_deaf = client.line.was_deaf or not on
            client.line.down.look()

    def _server_publish(self, how: dict[str, Any]) -> None:
        note = self.ledger.new_note("house", how["topic"], how["qos"], False, 10)
        note.sends = 1
        note.sent_serial = self.serial
        self.serial += 1
        note.refused = self.engine.publish(ApplicationMessage(note.topic, note.payload, note.qos), self.now).failed
        self.surroundings.when_written(lambda: self._acknowledged(note))
        self.surroundings.settle()

    def _acknowledged(self, note: Note) -> None:
        note.acked_serial = self.serial

    def _crash(self) -> None:
        """The broker is gone in the middle of whatever it did, and begins again with what its store has."""
        assert self.shelf is not None
        self.surroundings.break_down()
        self.engine = self._new_engine()
        self.engine.restore(self.shelf, self.now, self.now)
        self.audit = Audit(self.engine.state, self.limits, self.fail)
        self.surroundings.begin_anew(self.engine)
        self._connect_witness()

    def _connect_witness(self) -> None:
        """With a session that lasts, if others do: what comes while nobody is connected is for it too."""
        lasting = self.script.lasting
        self.connect(self.witness, {"clean": not lasting, "expiry_s": 100_000 if lasting else 0})

    # ---- the run ----

    def run(self) -> None:
        """Raises BrokenPromise."""
        self._connect_witness()
        self.timeline.run_until(self.now + 2)
        plain = {"no_local": False, "retain_as_published": False, "retain_handling": 2, "identifier": 0}
        self.witness.subscribe({"filters": ["will/#"], "qos": 2, **plain})
        self.timeline.run_until(self.now + 1)
        for step in self.script.steps:
            self.step(step)
        self._heal()
        now = self.now
        self.audit.check_accounts(self.surroundings.unflushed > 0)
        self.surroundings.settle()
        for client in self.clients:
            self._check_finished(client)
        self.ledger.check(self.clients, now)
        self.incarnations.settle_wills()
        if not self.witness.connected and "disconnect" not in self.script.overflow.values():
            raise BrokenPromise("the witness of the Wills is not connected, though nothing is in its way")
        self.ledger.check_wills(self.witness, now)
        self._check_retained(plain)
        self._end()

    def _heal(self) -> None:
        """Everybody who was promised something comes back, reads, acknowledges, and gets it."""
        for client in self.clients:
            self.faults[client.index] = PERFECT
            client.hold(False)
            if client.line is not None:
                client.line.up.faults = client.line.down.faults = PERFECT
            self._read(client, True)
        self.timeline.run_until(self.now + 10.0171)
        for client in self.clients:
            known = self.incarnations.of.get(client.client_id)
            if client.connected:
                client.is_whole = True
            elif known is not None:
                client.is_whole = True  # if the session is gone by now, `note_connected` will have taken what it was owed
                self.connect(client, {"clean": client.version < MQTT_5 and known.expiry_s == 0, "expiry_s": 1_000_000})
        self.timeline.run_until(self.now + HEALING_S)
        for client in self.clients:
            if client.connected:
                client.ping()
        self.timeline.run_until(self.now + 10)

    def _check_finished(self, client: SimulatedClient) -> None:
        may_be_ended = "disconnect" in self.script.overflow.values() or self.limits.memory_bytes_max < TIGHT_BYTES
        if client.line is None and client.is_whole and not may_be_ended:
            raise BrokenPromise(f"{client.client_id} is not connected, though nothing is in its way")
        if client.line is None:
            client.is_whole = False
            return
        if client.outgoing or client.waiting:
            raise BrokenPromise(
                f"{client.client_id} waits for acknowledgements that do not come: {list(client.outgoing)}, {len(client.waiting)} more"
            )
        if client.held:
            raise BrokenPromise(f"{client.client_id} waits for PUBREL: {list(client.held)}")
        session = self.engine.state.sessions[client.client_id]
        if session.queue.count or session.sender.count or session.receiver.held:
            raise BrokenPromise(f"{client.client_id}: {session.queue.count} wait, {session.sender.count} are unfinished, for no reason")

    def _check_retained(self, plain: dict[str, Any]) -> None:
        self.connect(self.checker, {"clean": True, "expiry_s": 0})
        self.timeline.run_until(self.now + 2)
        self.checker.subscribe({"filters": ["#"], "qos": 1, **plain, "retain_handling": 0})
        self.timeline.run_until(self.now + 10)
        found: dict[str, bytes] = {}
        for receipt in self.checker.receipts:
            if receipt.retain and not receipt.dup:
                if receipt.note.topic in found:
                    raise BrokenPromise(f"two retained messages came for {receipt.note.topic}")
                found[receipt.note.topic] = receipt.note.payload
        found = {topic: payload for topic, payload in found.items() if not topic.startswith("will/")}
        limits = self.limits
        tight = limits.retained_count_max < 20 or limits.memory_bytes_max < 1_000_000
        self.ledger.check_retained(found, tight, self.now)

    def _end(self) -> None:
        """Shut down: everybody is told, and nothing is left."""
        self._over = True
        self.engine.shutdown(self.now)
        self.surroundings.settle()
        self.timeline.run_until(self.now + 20)
        for line in self.surroundings.lines:
            self.surroundings.detach(line)
        self.timeline.run_until(self.now + 2e9)
        self.audit.check_nothing_left()
        if self.shelf is not None and self.shelf.rows_count:
            raise BrokenPromise(f"no session is left, and of some the store has {self.shelf.rows_count} rows")


def simulate(script: Script) -> Outcome:
    """Run it. A broken promise, and any exception of the broker's, is in `Outcome.fault`."""
    simulation = Simulation(script)
    fault = ""
    try:
        simulation.run()
    except BrokenPromise as error:
        fault = str(error)
    except Exception as error:  # the broker promised never to raise for what a peer did
        fault = f"{type(error).__name__}: {error}"
    receipts = sum(len(client.all_receipts) for client in simulation.everybody)
    return Outcome(script, fault, simulation.surroundings.digest.hexdigest(), len(simulation.ledger.notes), receipts, simulation.now - 1000.0)
