"""Nothing may be acknowledged before it is on disk.

A link whose bytes depend on a change has a `gate`, the number of the changes that it waits for, and is not named by `take_ready` before these are
committed (`Engine.committed`). A link that has to do with nothing that lasts never waits. There may always be something newer for it before that
is committed: so what it was to be sent when the changes were taken goes out with them. What nobody waits for, as what an acknowledgement comes to,
may be written with something later: `Journal.awaited` says what somebody does wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State


def gate(state: State, link: Link) -> None:
    """What it is to be sent, and has not been, waits until all that has changed up to now is committed."""
    journal = state.journal
    assert journal is not None
    link.gate = journal.newest
    state.mark_ready(link)  # so that it is named when it may go on, whoever had named it before


def note(state: State, session: Session, count: int = 1) -> None:
    """Something of a session has changed, about so many rows: if it lasts, its client is not told before that is committed. (Hot paths look for
    themselves whether it does.)"""
    journal = state.journal
    if session.record is None or journal is None:
        return
    journal.touch(session, count)
    if session.link is not None:
        gate(state, session.link)


def gate_exactly(state: State, publisher: Link | None, recipient: Link, qos: int) -> None:
    """A message at QoS 2 leaves when it is on disk that it has come, whatever its recipient keeps: else it would be taken for another one when its
    publisher, who was not answered, repeats it. And a Will when it is on disk that nobody has it any more."""
    if state.publishes_wills:
        gate(state, recipient)
        return
    session = None if publisher is None or qos < 2 else publisher.session
    if session is not None and session.record is not None:
        note(state, session)
        gate(state, recipient)


def let_through(state: State, links: list[Link]) -> list[Link]:
    """Those that wait for nothing, and those that are named for something else than bytes: to be closed, to be read again. What is to be sent to who
    waits takes memory meanwhile, as if its socket were full."""
    through: list[Link] = []
    journal = state.journal
    for link in links:
        is_gated = link.gate > state.committed
        if is_gated:
            link.ready = False
            if link.outbox.account is not None:  # else its stream is gone
                link.outbox.count()
                if link.outbox.committed_bytes:
                    state.gated[link] = None
                    if journal is not None and journal.awaited < link.gate:
                        journal.awaited = link.gate
        if not is_gated or link.closing or link.goes_on or link.clear_bytes > link.outbox.sent_bytes_total:
            link.goes_on = False
            through.append(link)
    return through


def open_gates(state: State, number: int) -> None:
    """The changes up to that number are committed."""
    state.committed = number
    journal = state.journal
    if journal is not None and journal.going:
        journal.going = {client_id: gone_in for client_id, gone_in in journal.going.items() if gone_in > number}
    for link in list(state.gated):
        if link.gate <= number:
            del state.gated[link]
            link.outbox.uncount()
            state.mark_ready(link)
        elif link.taken_bytes > link.outbox.sent_bytes_total:
            link.clear_bytes = link.taken_bytes
            state.mark_ready(link)
