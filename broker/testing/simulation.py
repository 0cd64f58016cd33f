"""A whole broker in virtual time: the pure engine, simulated clients, faulty connections between them, and the books of what was promised.

`simulate(script)` runs one script to its end: the steps; then the network heals, everybody who has a session comes back and reads;
then the books are checked; then the broker shuts down and nothing may be left. The same script gives the same bytes at the same
times, which `Outcome.digest` shows.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from random import Random
from typing import Any, Final

import msgspec

from broker.core.engine import Engine
from broker.core.incoming import FREE_BYTES
from broker.core.limits import Limits
from broker.core.link import ENDED, Link
from broker.core.message import ApplicationMessage
from broker.core.observer import Observer
from broker.reasons import ReasonCode
from broker.testing.client import EXPECTED_GOODBYES, SimulatedClient
from broker.testing.ledger import BrokenPromise, Ledger, Note, WillView
from broker.testing.own import OwnClient
from broker.testing.script import ClientSpec, Script, Step
from broker.testing.timeline import Timeline
from broker.testing.wire import Faults, Line, Pipe
from broker.wire.packets import MQTT_5, NO_PROPERTIES, ConnAck, Disconnect, Properties, WillMessage

TIGHT_BYTES: Final = 100_000
"""With less memory two packets that are coming in may find no place."""
ENGINE_TURN_BYTES: Final = 131_072
"""What one call of the core may add to an outbox that was below its mark: what it had read, and answers to it."""
MESSAGE_BYTES_MAX: Final = 5_200
PATIENCE_GRACES: Final = 5
RECONNECT_S: Final = 2.0311
HEALING_S: Final = 200.0
ACCOUNT_CHECK_INTERVAL: Final = 64

PERFECT: Final = Faults()
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
        self.simulation.note_connected(line)

    def violation(self, link: Link, cause: str) -> None:
        if not cause.startswith("the stream ended inside a packet"):
            self.simulation.fail(f"{link.client_id} kept the rules, and was told that it {cause}")

    def dropped(self, client_id: str, reason: str, count: int) -> None:
        if reason == "unacknowledged":
            return  # it was sent; what may be missing at a session's end the books know better
        counted = self.simulation.ledger.dropped.setdefault(client_id, {})
        counted[reason] = counted.get(reason, 0) + count


class _Incarnation:
    """What the last connection of a Client Identifier that the broker accepted comes to; the model's own idea of its session."""

    __slots__ = ("expiry_s", "line", "said_goodbye", "will")

    def __init__(self, line: Line, expiry_s: float, will: WillView | None) -> None:
        self.line = line
        self.expiry_s = expiry_s
        self.will = will
        self.said_goodbye: bool | None = False
        """DISCONNECT reached the engine before anything else ended the connection; None: nobody can know."""


class Simulation:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.random = Random(script.seed * 7 + 1)
        self.timeline = Timeline(self.random)
        self.ledger = Ledger(script.access_rules)
        self.limits = Limits(**script.limits)
        self.maximum_qos = self.limits.maximum_qos
        self.serial = 0
        self.digest = hashlib.sha256()
        self.failure = ""
        self.uses_retain_as_published = any(step[0] == "subscribe" and step[2].get("retain_as_published") for step in script.steps)
        numbers = itertools.count(1)
        self.engine = Engine(
            self.limits,
            new_client_id=lambda: f"assigned-{next(numbers)}",
            asks_authentication=script.asks_authentication,
            authorize=self._authorize if script.access_rules else None,
            observer=_Watch(self),
            overflow=script.overflow,
        )
        self.lines: list[Line] = []
        self.faults: dict[int, Faults] = {}
        self.reading: dict[int, bool] = {}
        self.clients = [(OwnClient if spec.own else SimulatedClient)(self, index, spec) for index, spec in enumerate(script.clients)]
        self.witness = SimulatedClient(self, len(self.clients), WITNESS)
        self.checker = SimulatedClient(self, len(self.clients) + 1, CHECKER)
        self.everybody = [*self.clients, self.witness, self.checker]
        self.incarnations: dict[str, _Incarnation] = {}
        self._connects: dict[Line, tuple[bool, float, WillView | None]] = {}
        self._expected_present: dict[Line, bool | None] = {}
        self._goodbye_at: dict[Line, int] = {}
        self._tick_at = math.inf
        self._over = False
        self._asked_to: dict[SimulatedClient, dict[str, Any]] = {}
        """How each client connected the last time."""
        self._unflushed = 0
        """How many rounds of flushing are under way, one within the other."""
        self._paused: dict[Link, dict[Link, tuple[float, int]]] = {}
        """Those that are not read: by whom, since when, and what that one had been sent."""

    @property
    def now(self) -> float:
        return self.timeline.now

    def fail(self, what: str) -> None:
        """Noted, since it may come up in the middle of the engine's work; raised at the next safe place."""
        self.failure = self.failure or what

    def _authorize(self, username: str | None, client_id: str, action: str, topic: str) -> bool:
        return action == "subscribe" or self.ledger.may_use(username, topic)

    # ---- connections ----

    def open_line(self, client: SimulatedClient) -> Line:
        line = Line(len(self.lines) + 1, client.index)
        self.lines.append(line)
        faults = self.faults.get(client.index, PERFECT)
        random = Random(self.script.seed * 1_000_003 + client.index * 1009 + sum(one.client_index == client.index for one in self.lines))
        line.up = Pipe(self.timeline, random, faults, lambda data: self._to_engine(line, data), lambda: self._may_deliver(line))
        line.down = Pipe(self.timeline, random, faults, lambda data: self._to_client(client, line, data))
        line.down.frozen = line.was_deaf = not self.reading.get(client.index, True)
        line.link = self.engine.attach(client.client_id, self.now, transport=line)
        self.settle()
        return line

    @staticmethod
    def _may_deliver(line: Line) -> bool:
        link = line.link
        assert link is not None
        return line.detached or link.closing or not (link.paused or line.more)

    def _to_engine(self, line: Line, data: bytes) -> None:
        link = line.link
        assert link is not None
        if line.detached:
            return
        self.serial += 1
        self._record(line, b">", data)
        if not data:
            self.detach(line)
            return
        was_over = link.phase == ENDED
        recipient = self.engine.sole_recipient(link, data)
        if recipient is None:
            line.more = self.engine.receive(link, data, self.now)
        else:
            self._pass_on(link, recipient, data)
        if line in self._goodbye_at and line.up.delivered_bytes >= self._goodbye_at[line] and not was_over:
            known = self.incarnations.get(link.client_id)
            if known is not None and known.line is line:
                known.said_goodbye = None if link.phase != ENDED else True
        self._look_after(line)
        self.settle()

    def _pass_on(self, link: Link, recipient: Link, data: bytes) -> None:
        down = recipient.transport
        assert isinstance(down, Line)
        chunk = data[: max(0, down.down.room_bytes)]
        if chunk:
            down.down.send(chunk)
        self.engine.passed_on(link, recipient, data, len(chunk), self.now)

    def _look_after(self, line: Line) -> None:
        """What the surroundings owe a link after `receive`."""
        link = line.link
        assert link is not None
        if line.more:
            self.timeline.at(self.now, lambda: self._go_on(line))
        line.was_paused = line.was_paused or link.paused
        if link.paused:
            self._paused.setdefault(link, {})
        if link.auth is not None and link.auth is not line.question:
            line.question = link.auth
            self.timeline.at(self.now + self.random.choice((0.0, 0.1, 1.0)), lambda: self._authenticate(line))

    def _go_on(self, line: Line) -> None:
        link = line.link
        assert link is not None
        if line.detached:
            return
        self.serial += 1
        line.more = self.engine.receive(link, b"", self.now)
        self._look_after(line)
        self.settle()
        if not line.more:
            line.up.look()

    def _authenticate(self, line: Line) -> None:
        link = line.link
        assert link is not None
        self.serial += 1
        self.engine.authenticated(link, link.username, self.now)
        line.more = True
        self._go_on(line)

    def _to_client(self, client: SimulatedClient, line: Line, data: bytes) -> None:
        self.serial += 1
        self._record(line, b"<", data)
        if client.line is line:
            if data:
                client.receive(data)
            else:
                client.disconnected()
        self._flush(line)
        self.settle()

    def _record(self, line: Line, direction: bytes, data: bytes) -> None:
        self.digest.update(b"%d %s %r " % (line.number, direction, self.now.hex().encode()) + data)

    def detach(self, line: Line) -> None:
        if not line.detached:
            line.detached = True
            assert line.link is not None
            self.serial += 1
            self._note_end(line)
            self.engine.detach(line.link, self.now)
            line.up.kill()
            line.down.send(b"")
            self.settle()

    # ---- after each verb ----

    def settle(self) -> None:
        """Take what the engine has ready, until there is nothing; see to the next deadline; look whether the books are right."""
        engine = self.engine
        self._unflushed += 1
        while ready := engine.take_ready():
            for link in ready:
                line = link.transport
                assert isinstance(line, Line)
                self._flush(line)
        self._unflushed -= 1
        deadline = engine.next_deadline()
        if deadline < self._tick_at:
            self._tick_at = max(deadline, self.now)
            at = self._tick_at
            self.timeline.at(at, lambda: self._tick(at))
        self._check_memory()
        if self._paused:
            self._check_paused()
        if self.failure:
            raise BrokenPromise(self.failure)

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = math.inf
            self.serial += 1
            self.engine.tick(self.now)
            self.settle()

    def _flush(self, line: Line) -> None:
        link = line.link
        assert link is not None
        engine = self.engine
        if link.phase == ENDED:
            self._note_end(line)
        while not line.detached:
            data = engine.data_to_send(link, 65_536)
            room = line.down.room_bytes
            if not data:
                if link.closing:
                    self.detach(line)
                break
            if room <= 0:
                engine.bytes_sent(link, 0, self.now)
                if link.closing:
                    self.timeline.at(self.now + self.limits.close_timeout_s, lambda: self.detach(line))
                break
            chunk = bytes(data[:room])
            line.down.send(chunk)
            engine.bytes_sent(link, len(chunk), self.now)
        if line.was_paused and not link.paused and not line.detached:
            line.was_paused = False
            line.more = True
            self.timeline.at(self.now, lambda: self._go_on(line))

    def _check_paused(self) -> None:
        """Nobody is held up for longer than may be by one that takes nothing."""
        longest_s = (PATIENCE_GRACES + 2) * self.limits.slow_subscriber_grace_s + 0.001  # what is judged, then its credit, in a row
        for link, pausers in list(self._paused.items()):
            if not link.paused:
                del self._paused[link]
                continue
            for pauser in link.paused_by or ():
                since, taken = pausers.setdefault(pauser, (self.now, pauser.outbox.sent_bytes_total))
                if taken != pauser.outbox.sent_bytes_total:
                    pausers[pauser] = (self.now, pauser.outbox.sent_bytes_total)
                elif self.now > since + longest_s:
                    self.fail(f"{link.client_id} is held up by {pauser.client_id}, which has taken nothing for {self.now - since:.1f} s")

    def _check_memory(self) -> None:
        state = self.engine.state
        limits = self.limits
        account = state.waiting
        # Whoever has nothing unsent and nothing unacknowledged gets one message even then, which counts for both.
        if state.outgoing_bytes > limits.memory_bytes_max + len(state.links) * 2 * MESSAGE_BYTES_MAX + ENGINE_TURN_BYTES:
            self.fail(
                f"{account.bytes} bytes wait, {account.inflight_bytes} are unacknowledged, {account.unsent_bytes} unsent, "
                f"{state.retained.bytes} retained: above {limits.memory_bytes_max}"
            )
        large = sum(link.receiving_bytes > FREE_BYTES for link in state.links if not link.closing)
        if account.receiving_bytes > state.receiving_bytes_max and large > 1:
            self.fail(f"{account.receiving_bytes} bytes of packets that have not come in full are held, above {state.receiving_bytes_max}")
        if account.bytes + state.retained.bytes > limits.memory_bytes_max:
            self.fail(f"{account.bytes} bytes wait and {state.retained.bytes} are retained, above {limits.memory_bytes_max}")
        for link in state.links:
            if link.outbox.committed_bytes > limits.outbox_bytes_high + ENGINE_TURN_BYTES:
                self.fail(f"{link.client_id} has {link.outbox.committed_bytes} committed bytes")
        if self.serial % ACCOUNT_CHECK_INTERVAL == 0:
            self._check_account()

    def _check_account(self) -> None:
        """What all queues come to, added up anew."""
        state = self.engine.state
        limits = self.limits
        for session in state.sessions.values():
            if session.queue.count > limits.queue_count_max or session.queue.bytes > limits.queue_bytes_max:
                self.fail(f"{session.client_id} has {session.queue.count} messages waiting, {session.queue.bytes} bytes")
        for link in state.links:
            if link.outbox.waiting.count > limits.outbox_count_max or link.outbox.waiting.bytes > limits.outbox_bytes_max:
                self.fail(f"{link.client_id} has {link.outbox.waiting.count} QoS 0 messages waiting, {link.outbox.waiting.bytes} bytes")
        queues = [session.queue for session in state.sessions.values()] + [link.outbox.waiting for link in state.links if link.phase != ENDED]
        for queue in queues:
            deliveries = queue.deliveries()
            if (queue.count, queue.bytes) != (len(deliveries), sum(delivery.message.size for delivery in deliveries)):
                self.fail(f"a queue says {queue.count}, {queue.bytes} bytes; there are {len(deliveries)}")
        if (state.waiting.count, state.waiting.bytes) != (sum(queue.count for queue in queues), sum(queue.bytes for queue in queues)):
            self.fail(f"the account says {state.waiting.bytes} bytes wait, the queues {sum(queue.bytes for queue in queues)}")
        inflight = sum(unacknowledged.size for session in state.sessions.values() for unacknowledged in session.sender.unacknowledged.values())
        unsent = sum(link.outbox.counted_bytes for link in state.links)
        behind = 0 if self._unflushed else sum(link.outbox.committed_bytes for link in state.links)
        receiving = sum(link.decoder.held_bytes + (link.rate.held_bytes if link.rate is not None else 0) for link in state.links)
        if state.waiting.receiving_bytes != receiving:
            self.fail(f"the account says {state.waiting.receiving_bytes} bytes are coming in, the links hold {receiving}")
        if state.waiting.inflight_bytes != inflight or state.waiting.unsent_bytes != unsent or unsent < behind:
            self.fail(
                f"the account says {state.waiting.inflight_bytes} bytes are unacknowledged and {state.waiting.unsent_bytes} unsent, "
                f"the sessions {inflight}, the links {unsent} and {behind}"
            )

    # ---- the model's idea of sessions and Wills ----

    def note_connected(self, line: Line) -> None:
        """The engine has accepted a CONNECT: should the session be there, and what becomes of the Will before?"""
        client = self.everybody[line.client_index]
        clean, expiry_s, will = self._connects[line]
        before = self.incarnations.get(client.client_id)
        present: bool | None = False
        if before is not None:
            if before.line.ended_at is None:
                self._note_end(before.line)
            ended_at = before.line.ended_at
            assert ended_at is not None
            over_at = ended_at + before.expiry_s
            # A connection that is taken over keeps its session until CONNECT says otherwise, even one that would have ended with it ...
            present = not clean and (self.now < over_at or (self.now == over_at and None))
            if not clean and before.expiry_s == 0:
                present = False  # ... but a session of 0 seconds ends with its connection.
            self._settle_will(before, resumed=present)
        if not present:
            client.lose_session(self.serial)
        if present is None:
            self.fail("the simulation came back at the very moment of expiry")
        self._expected_present[line] = present
        self.incarnations[client.client_id] = _Incarnation(line, expiry_s, will)

    def _note_end(self, line: Line) -> None:
        """The connection is over for the core. A session of 0 seconds with it."""
        if line.ended_at is not None:
            return
        line.ended_at = self.now
        line.ended_serial = self.serial
        client = self.everybody[line.client_index]
        known = self.incarnations.get(client.client_id)
        if known is None or known.line is not line:
            return
        if known.expiry_s == 0:
            for view in client.views:
                view.certain_until = min(view.certain_until, self.serial)
        will = known.will
        if will is not None:
            will.due_at = self.now + min(will.delay_s, known.expiry_s)
            will.expected = 1
            will.note.sends = 1
            will.note.sent_serial = self.serial
            # Whether a DISCONNECT ended it is settled when somebody asks.

    def _settle_will(self, known: _Incarnation, resumed: bool | None) -> None:
        """Somebody came after it: what was not due by then is cancelled, or came out with the session's end [MQTT5-3.1.3-9]."""
        will = known.will
        if will is None or will.settled:
            return
        will.settled = True
        if known.said_goodbye is None:
            will.expected = None
        elif known.said_goodbye or (resumed and self.now < will.due_at):
            will.expected = 0
        elif self.now == will.due_at and will.delay_s:
            will.expected = None
        if will.expected == 1:
            will.due_at = min(will.due_at, self.now)

    # ---- what clients report ----

    def check_refusal(self, client: SimulatedClient, packet: ConnAck) -> None:
        raise BrokenPromise(f"{client.client_id} was refused with {packet.reason!r}: {packet.properties.reason_string}")

    def check_goodbye(self, client: SimulatedClient, packet: Disconnect) -> None:
        expected = set(EXPECTED_GOODBYES)
        if "disconnect" in self.script.overflow.values() or self.limits.memory_bytes_max < TIGHT_BYTES:
            expected.add(ReasonCode.QUOTA_EXCEEDED)
        if packet.reason not in expected:
            raise BrokenPromise(f"{client.client_id} kept the rules and got DISCONNECT {packet.reason!r}: {packet.properties.reason_string}")

    def check_session_present(self, line: Line, present: bool) -> None:
        expected = self._expected_present.get(line)
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
        self._connects[client.line] = (clean, expiry_s, view)
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
        line_count = len(self.lines)

        def again() -> None:
            if not self._over and client.line is None and not any(line.client_index == client.index for line in self.lines[line_count:]):
                self.serial += 1
                self.connect(client, how)

        self.timeline.at(self.now + RECONNECT_S, again)

    def _abandon(self, client: SimulatedClient, line: Line) -> None:
        """The client has forgotten this connection; the other side may find out for itself."""
        if not client.connected:
            self.detach(line)  # or its CONNECT might be accepted after the next one's, when somebody has to be asked who it is
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
        elif kind == "kick":
            self.engine.disconnect(client.client_id, ReasonCode.ADMINISTRATIVE_ACTION, self.now)
            self.settle()
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
            self._goodbye_at[line] = line.up.sent_bytes
        client.disconnected()
        line.down.frozen = True
        if how == "cut":
            line.up.kill()
            line.down.kill()
            self.detach(line)
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
        note.acked_serial = self.serial
        self.settle()

    # ---- the run ----

    def run(self) -> None:
        """Raises BrokenPromise."""
        self.connect(self.witness, {"clean": True, "expiry_s": 0})
        self.timeline.run_until(self.now + 2)
        plain = {"no_local": False, "retain_as_published": False, "retain_handling": 2, "identifier": 0}
        self.witness.subscribe({"filters": ["will/#"], "qos": 2, **plain})
        self.timeline.run_until(self.now + 1)
        for step in self.script.steps:
            self.step(step)
        self._heal()
        now = self.now
        self._check_account()
        self.settle()
        for client in self.clients:
            self._check_finished(client)
        self.ledger.check(self.clients, now)
        for known in self.incarnations.values():
            self._settle_will_at_end(known)
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
            known = self.incarnations.get(client.client_id)
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
        if client.line is None and client.is_whole and "disconnect" not in self.script.overflow.values():
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

    def _settle_will_at_end(self, known: _Incarnation) -> None:
        if known.will is not None and not known.will.settled:
            if known.said_goodbye:
                known.will.expected = 0
            elif known.said_goodbye is None:
                known.will.expected = None

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
        self.settle()
        self.timeline.run_until(self.now + 20)
        for line in self.lines:
            self.detach(line)
        self.timeline.run_until(self.now + 2e9)
        state = self.engine.state
        left = {
            "waiting": (state.waiting.count, state.waiting.total_bytes),
            "links": len(state.links),
            "sessions": len(state.sessions),
            "connected": state.connected_count,
            "subscriptions": state.topics.subscriptions_count + state.topics.shared_count,
            "work lists": len(state.wills) + len(state.orphans) + len(state.backlog) + len(state.closing),
            "deadlines": len(state.deadlines),
        }
        expected = dict.fromkeys(left, 0) | {"waiting": (0, 0)}
        if left != expected:
            raise BrokenPromise(f"after shutdown there is left: {left}")


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
    return Outcome(script, fault, simulation.digest.hexdigest(), len(simulation.ledger.notes), receipts, simulation.now - 1000.0)
