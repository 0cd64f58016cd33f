"""What the engine's surroundings owe it, in virtual time: to bring it what comes, to take what it has ready, to wake it when something is due.

In the place of `broker.net`: a connection is two pipes that break as they are told to, and every byte either side gets goes into the digest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from broker.core.engine import Engine
from broker.core.link import ENDED, Link
from broker.testing.client import SimulatedClient
from broker.testing.ledger import BrokenPromise
from broker.testing.timeline import Timeline
from broker.testing.wire import Faults, Line, Pipe

if TYPE_CHECKING:
    from broker.core.saved import Changes
    from broker.testing.simulation import Simulation

PERFECT: Final = Faults()
UNAWAITED_S: Final = 0.1
"""As `broker.net.committer`'s."""


class Surroundings:
    def __init__(self, simulation: Simulation, engine: Engine, timeline: Timeline) -> None:
        self._simulation = simulation
        self._engine = engine
        self._timeline = timeline
        self.lines: list[Line] = []
        self._disk_random = Random(simulation.script.seed * 11 + 5)
        self.digest = hashlib.sha256()
        self._tick_at = math.inf
        self._writing: Changes | None = None
        self._writes_later = False
        self._waiting_for_disk: list[tuple[int, Callable[[], None]]] = []
        self._lives = 1
        self.unwritten: list[Line] = []
        """Those whose CONNECT was accepted, and a crash now would undo that."""
        self.unheard: list[Line] = []
        """Those that were taken over by one that needed not be written: the store has not heard of them, nor of their Wills."""
        self.unflushed = 0
        """How many rounds of flushing are under way, one within the other."""

    def open_line(self, client: SimulatedClient) -> Line:
        line = Line(len(self.lines) + 1, client.index)
        self.lines.append(line)
        faults = self._simulation.faults.get(client.index, PERFECT)
        random = Random(self._simulation.script.seed * 1_000_003 + client.index * 1009 + sum(one.client_index == client.index for one in self.lines))
        line.up = Pipe(self._timeline, random, faults, lambda data: self._to_engine(line, data), lambda: self._may_deliver(line))
        line.down = Pipe(self._timeline, random, faults, lambda data: self._to_client(client, line, data))
        line.down.frozen = line.was_deaf = not self._simulation.reading.get(client.index, True)
        line.link = self._engine.attach(client.client_id, self._simulation.now, transport=line)
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
        self._simulation.serial += 1
        self._record(line, b">", data)
        if not data:
            self.detach(line)
            return
        was_over = link.phase == ENDED
        recipient = self._engine.sole_recipient(link, data)
        if recipient is None:
            line.more = self._engine.receive(link, data, self._simulation.now)
        else:
            self._pass_on(link, recipient, data)
        self._simulation.incarnations.heard(line, link, was_over)
        self._look_after(line)
        self.settle()

    def _pass_on(self, link: Link, recipient: Link, data: bytes) -> None:
        down = recipient.transport
        assert isinstance(down, Line)
        chunk = data[: max(0, down.down.room_bytes)]
        if chunk:
            down.down.send(chunk)
        self._engine.passed_on(link, recipient, data, len(chunk), self._simulation.now)

    def _look_after(self, line: Line) -> None:
        """What the surroundings owe a link after `receive`."""
        link = line.link
        assert link is not None
        if line.more:
            self._timeline.at(self._simulation.now, lambda: self._go_on(line))
        line.was_paused = line.was_paused or link.paused
        if link.paused:
            self._simulation.audit.note_paused(link)
        if link.auth is not None and link.auth is not line.question:
            line.question = link.auth
            self._timeline.at(self._simulation.now + self._simulation.random.choice((0.0, 0.1, 1.0)), lambda: self._authenticate(line))

    def _go_on(self, line: Line) -> None:
        link = line.link
        assert link is not None
        if line.detached:
            return
        self._simulation.serial += 1
        line.more = self._engine.receive(link, b"", self._simulation.now)
        self._look_after(line)
        self.settle()
        if not line.more:
            line.up.look()

    def _authenticate(self, line: Line) -> None:
        link = line.link
        assert link is not None
        if line.detached:
            return
        self._simulation.serial += 1
        self._engine.authenticated(link, link.username, self._simulation.now)
        line.more = True
        self._go_on(line)

    def _to_client(self, client: SimulatedClient, line: Line, data: bytes) -> None:
        self._simulation.serial += 1
        self._record(line, b"<", data)
        if client.line is line:
            if data:
                client.receive(data)
            else:
                client.disconnected()
        self._flush(line)
        self.settle()

    def _record(self, line: Line, direction: bytes, data: bytes) -> None:
        self.digest.update(b"%d %s %r " % (line.number, direction, self._simulation.now.hex().encode()) + data)

    def detach(self, line: Line) -> None:
        if not line.detached:
            line.detached = True
            assert line.link is not None
            self._simulation.serial += 1
            self._simulation.incarnations.ended(line)
            self._engine.detach(line.link, self._simulation.now)
            line.up.kill()
            line.down.send(b"")
            self.settle()

    # ---- after each verb ----

    def settle(self) -> None:
        """Take what the engine has ready, until there is nothing; see to the next deadline; look whether the books are right."""
        engine = self._engine
        self.unflushed += 1
        while ready := engine.take_ready():
            for link in ready:
                line = link.transport
                assert isinstance(line, Line)
                self._flush(line)
        self.unflushed -= 1
        if self._writing is None and engine.has_changes:
            if engine.is_awaited or self._waiting_for_disk:
                self._write_soon()
            elif not self._writes_later:
                self._writes_later = True
                lives = self._lives
                self._timeline.at(self._simulation.now + UNAWAITED_S, lambda: self._write_late(lives))
        deadline = engine.next_deadline()
        if deadline < self._tick_at:
            self._tick_at = max(deadline, self._simulation.now)
            at = self._tick_at
            self._timeline.at(at, lambda: self._tick(at))
        self._simulation.audit.check(self._simulation.now, self._simulation.serial, self.unflushed > 0)
        if self._simulation.failure:
            raise BrokenPromise(self._simulation.failure)

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = math.inf
            self._simulation.serial += 1
            self._engine.tick(self._simulation.now)
            self.settle()

    # ---- the disk, and what becomes of the broker without it ----

    def when_written(self, then: Callable[[], None]) -> None:
        """All that has changed up to now; at once, if nothing is to last."""
        if self._engine.is_committed(self._engine.last_change):
            then()
        else:
            self._waiting_for_disk.append((self._engine.last_change, then))

    def _write_late(self, lives: int) -> None:
        """What nobody has waited for."""
        if lives == self._lives:
            self._writes_later = False
            if self._writing is None:
                self._write_soon()

    def _write_soon(self) -> None:
        """It takes its time, and what comes meanwhile is for the next turn."""
        self._writing = self._engine.take_changes(self._simulation.now, self._simulation.now)
        if self._writing is None:
            return
        lives = self._lives
        delay_s = self._disk_random.choice((0.0, 0.0, 0.0007, 0.0211, 0.0211))
        self._timeline.at(self._simulation.now + delay_s, lambda: self._written(lives))

    def _written(self, lives: int) -> None:
        shelf, changes = self._simulation.shelf, self._writing
        if lives != self._lives or shelf is None or changes is None:
            return
        self._simulation.serial += 1
        shelf.write(changes)
        self._writing = None
        self._settle_accepted(changes.number)
        self._engine.committed(changes.number)
        waited, self._waiting_for_disk = self._waiting_for_disk, []
        for number, then in waited:
            if number <= changes.number:
                then()
            else:
                self._waiting_for_disk.append((number, then))
        self.settle()

    def break_down(self) -> None:
        """The broker is gone. What it was writing has been written, or nothing of it; what its kernel had taken still goes out."""
        simulation = self._simulation
        assert simulation.shelf is not None
        if self._writing is not None and self._disk_random.random() < 0.5:
            simulation.shelf.write(self._writing)
        written = simulation.shelf.number
        self._writing = None
        self._waiting_for_disk.clear()
        self._lives += 1
        self._writes_later = False
        self._settle_accepted(written)
        simulation.incarnations.crashed(written)
        self.unwritten.clear()
        self.unheard.clear()
        for line in self.lines:
            if line.detached:
                continue
            line.detached = line.abandoned = True
            simulation.incarnations.ended(line)
            line.up.kill()
            line.down.send(b"")
        simulation.ledger.nobody_is_there()

    def accepted(self, line: Line) -> None:
        """The engine has accepted a CONNECT. With a store that counts when it is written."""
        incarnations = self._simulation.incarnations
        before = incarnations.of.get(self._simulation.everybody[line.client_index].client_id)
        if before is not None:
            incarnations.ended(before.line)
        assert line.link is not None
        line.accepted_in = line.link.gate
        line.accepted_at = self._simulation.now
        self.unwritten.append(line)
        if self._engine.is_committed(line.accepted_in):
            self._settle_accepted(line.accepted_in)

    def _settle_accepted(self, written: int) -> None:
        """Those whose CONNECT is known to the store, or was answered and need not be, and before each what it took over: the store may never
        hear of that."""
        last = {line.client_index: line for line in self.unwritten if line.accepted_in <= written}
        known = [line for line in self.unwritten if line.client_index in last and line.number <= last[line.client_index].number]
        self.unwritten = [line for line in self.unwritten if line not in known]
        self.unheard = [line for line in (*self.unheard, *known) if line.accepted_in > written]
        for line in known:
            self._simulation.incarnations.accepted(line, line.accepted_at)

    def begin_anew(self, engine: Engine) -> None:
        assert self._simulation.shelf is not None
        self._simulation.shelf.number = 0  # each engine counts its own
        self._engine = engine
        self._tick_at = math.inf
        self.settle()

    def _flush(self, line: Line) -> None:
        link = line.link
        assert link is not None
        if line.abandoned:
            return
        engine = self._engine
        if link.phase == ENDED:
            self._simulation.incarnations.ended(line)
        (taken,) = engine.take_to_send([link], 65_536)
        if taken:
            count = max(0, min(len(taken), line.down.room_bytes))
            if count:
                line.down.send(taken[:count])
            if count < len(taken):
                engine.give_back(link, taken, count)
        while not line.detached:
            data = engine.data_to_send(link, 65_536)
            room = line.down.room_bytes
            if not data:
                if link.closing and not engine.held_back(link):
                    self.detach(line)
                break
            if room <= 0:
                engine.bytes_sent(link, 0, self._simulation.now)
                if link.closing:
                    self._timeline.at(self._simulation.now + self._simulation.limits.close_timeout_s, lambda: self.detach(line))
                break
            chunk = bytes(data[:room])
            line.down.send(chunk)
            engine.bytes_sent(link, len(chunk), self._simulation.now)
        if line.was_paused and not link.paused and not line.detached:
            line.was_paused = False
            line.more = True
            self._timeline.at(self._simulation.now, lambda: self._go_on(line))
