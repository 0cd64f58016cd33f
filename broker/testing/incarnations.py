"""The model's own idea of sessions and Wills: what each Client Identifier's last connection comes to, and what has to be there after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.link import ENDED, Link
from broker.core.observer import DISCONNECTED
from broker.testing.ledger import WillView
from broker.testing.wire import Line

if TYPE_CHECKING:
    from broker.testing.simulation import Simulation

WRITTEN_S: Final = 0.2
"""By then the store knows of what nobody has waited for: that a connection has ended, too."""


class Incarnation:
    """What the last connection of a Client Identifier that the broker accepted comes to; the model's own idea of its session."""

    __slots__ = ("expiry_s", "goodbye_in", "line", "said_goodbye", "will", "will_due_until")

    def __init__(self, line: Line, expiry_s: float, will: WillView | None) -> None:
        self.line = line
        self.expiry_s = expiry_s
        self.will = will
        self.said_goodbye: bool | None = False
        """DISCONNECT reached the engine before anything else ended the connection; None: nobody can know."""
        self.goodbye_in = 0
        """The changes of that number have to be written for the broker to remember it."""
        self.will_due_until = 0.0
        """Its delay began anew with the broker, which need not have known that it had begun."""


class Incarnations:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.of: dict[str, Incarnation] = {}
        """By Client Identifier."""
        self.expected_present: dict[Line, bool | None] = {}
        """What Session Present has to say; None: either."""
        self._asked: dict[Line, tuple[bool, float, WillView | None]] = {}
        self._goodbye_at: dict[Line, int] = {}
        self._farewells: list[tuple[int, WillView]] = []
        """Wills that a DISCONNECT made not due and somebody came after, and the number of the changes that say so to the store."""

    def asks(self, line: Line, clean: bool, expiry_s: float, will: WillView | None) -> None:
        """A CONNECT is on its way."""
        self._asked[line] = (clean, expiry_s, will)

    def says_goodbye(self, line: Line) -> None:
        """A DISCONNECT is, behind all that was sent so far."""
        self._goodbye_at[line] = line.up.sent_bytes

    def heard(self, line: Line, link: Link, was_over: bool) -> None:
        """More of what it sent has come to the engine; was_over: too late."""
        if line in self._goodbye_at and line.up.delivered_bytes >= self._goodbye_at[line] and not was_over:
            known = self.of.get(link.client_id)
            if known is not None and known.line is line:
                # What came before it in the same read may have made the broker end the connection, and then the Will is due.
                known.said_goodbye = None if link.phase != ENDED else link.cause == DISCONNECTED
                known.goodbye_in = self._simulation.engine.last_change

    def accepted(self, line: Line, at: float) -> None:
        """The engine has accepted a CONNECT, at that time: should the session be there, and what becomes of the Will before?"""
        client = self._simulation.everybody[line.client_index]
        clean, expiry_s, will = self._asked[line]
        before = self.of.get(client.client_id)
        present: bool | None = False
        if before is not None:
            if before.line.ended_at is None:
                self.ended(before.line)
            ended_at = before.line.ended_at
            assert ended_at is not None
            over_at = ended_at + before.expiry_s
            # A connection that is taken over keeps its session until CONNECT says otherwise, even one that would have ended with it ...
            present = not clean and (at < over_at or (at == over_at and None))
            if not clean and before.expiry_s == 0:
                present = False  # ... but a session of 0 seconds ends with its connection.
            self._settle_will(before, present, at)
        if not present:
            client.lose_session(self._simulation.serial)
        if present is None:
            self._simulation.fail("the simulation came back at the very moment of expiry")
        self.expected_present[line] = present
        self.of[client.client_id] = Incarnation(line, expiry_s, will)
        if line.ended_at is not None:
            self._take_effect(line, line.ended_at)

    def crashed(self, written: int) -> None:
        """What was not written never happened: a DISCONNECT is not answered, and so promised to nobody."""
        surroundings = self._simulation.surroundings
        for line in (*surroundings.unwritten, *surroundings.unheard):
            will = self._asked[line][2]
            if will is not None and line.ended_at is not None:
                will.expected = None  # nobody knows of it any more, and it may have gone out
        for goodbye_in, told in self._farewells:
            if goodbye_in > written:
                told.expected = None
        self._farewells = []
        for known in self.of.values():
            if known.said_goodbye and known.goodbye_in > written:
                known.said_goodbye = None
            known.goodbye_in = 0
            ended_at = known.line.ended_at
            if known.will is not None and ended_at is not None and self._simulation.now < ended_at + WRITTEN_S:
                known.will_due_until = self._simulation.now + min(known.will.delay_s, known.expiry_s)

    def ended(self, line: Line) -> None:
        """The connection is over for the core. A session of 0 seconds with it."""
        if line.ended_at is not None:
            return
        line.ended_at = self._simulation.now
        self._take_effect(line, line.ended_at)

    def _take_effect(self, line: Line, ended_at: float) -> None:
        client = self._simulation.everybody[line.client_index]
        known = self.of.get(client.client_id)
        if known is None or known.line is not line:
            if line in self._simulation.surroundings.unwritten:
                _may_have_gone_out(self._asked[line][2], self._simulation.serial)
            return
        if known.expiry_s == 0:
            for view in client.views:
                view.certain_until = min(view.certain_until, self._simulation.serial)
        will = known.will
        if will is not None:
            will.due_at = ended_at + min(will.delay_s, known.expiry_s)
            will.expected = 1
            _may_have_gone_out(will, self._simulation.serial)
            # Whether a DISCONNECT ended it is settled when somebody asks.

    def _settle_will(self, known: Incarnation, resumed: bool | None, at: float) -> None:
        """Somebody came after it: what was not due by then is cancelled, or came out with the session's end [MQTT5-3.1.3-9]."""
        will = known.will
        if will is None or will.settled:
            return
        will.settled = True
        if known.said_goodbye is None:
            will.expected = None
        elif known.said_goodbye or (resumed and at < will.due_at):
            will.expected = 0
            if known.said_goodbye:
                self._farewells.append((known.goodbye_in, will))
        elif (at == will.due_at and will.delay_s) or (resumed and at < known.will_due_until):
            will.expected = None
        if will.expected == 1:
            will.due_at = min(will.due_at, at)

    def settle_wills(self) -> None:
        """At the end: what nobody came after."""
        for known in self.of.values():
            if known.will is not None and not known.will.settled:
                if known.said_goodbye:
                    known.will.expected = 0
                elif known.said_goodbye is None:
                    known.will.expected = None


def _may_have_gone_out(will: WillView | None, serial: int) -> None:
    if will is not None and not will.note.sends:
        will.note.sends = 1
        will.note.sent_serial = serial
