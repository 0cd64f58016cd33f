"""Backpressure: a link whose outbox is full pauses those who publish to it, on its credit.

The credit is `slow_subscriber_grace_s`, spent while it pauses somebody and refilled at a tenth of time; when it is used
up the overflow rules act on the slow link alone. (A grace for each episode let one dripping reader cut a healthy one
from 704 to 0.9 MB/s for ever.) A message's only recipient may pace its publisher for as long as it makes progress, since
nobody else suffers from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.deadlines import PAUSE_CREDIT

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

_REFILL_RATE: Final = 0.1
_CREDIT_S_MIN: Final = 0.001
"""Less is not worth a pause."""


def press(state: State, publisher: Link, link: Link, sole: bool, now: float) -> None:
    """`link` has more bytes waiting than it should: do not read `publisher` until it has drained, or its credit is spent."""
    session = publisher.session
    if session is None or session.sender.count:
        return  # its reads carry the acknowledgements that drain its own queue
    if link.session is None:
        return  # the overflow rule has just closed it
    if link.pausing is None:
        grace_s = state.limits.slow_subscriber_grace_s
        link.credit_s = min(grace_s, link.credit_s + _REFILL_RATE * (now - link.credit_at))
        link.credit_at = now
        progressed = link.outbox.sent_bytes_total != link.progress_mark
        pause_s = grace_s if sole and progressed else link.credit_s
        if pause_s < _CREDIT_S_MIN:
            return
        link.pausing = {}
        link.progress_mark = link.outbox.sent_bytes_total
        link.pause_deadline = state.deadlines.add(now + pause_s, PAUSE_CREDIT, link)
    elif not sole and link.credit_s - (now - link.credit_at) < _CREDIT_S_MIN:
        return
    link.pausing[publisher] = sole
    if publisher.paused_by is None:
        publisher.paused_by = set()
    publisher.paused_by.add(link)
    publisher.paused = True


def credit_spent(state: State, link: Link, now: float) -> None:
    """The pause has lasted as long as it may: let go of all but those whose only recipient this is, if it makes progress."""
    if link.pausing is None:
        return
    progressed = link.outbox.sent_bytes_total != link.progress_mark
    kept = {publisher: True for publisher, sole in link.pausing.items() if sole and progressed}
    charged = len(kept) < len(link.pausing)
    for publisher in list(link.pausing):
        if publisher not in kept:
            _let_go(state, publisher, link, now)
    if charged:
        link.credit_s = 0.0
    link.credit_at = now
    if kept:
        link.pausing = kept
        link.progress_mark = link.outbox.sent_bytes_total
        link.pause_deadline = state.deadlines.add(now + state.limits.slow_subscriber_grace_s, PAUSE_CREDIT, link)
    else:
        link.pausing = None
        link.pause_deadline = None


def release(state: State, link: Link, now: float) -> None:
    """It has drained, or it is gone: everybody that waited for it goes on."""
    pausing = link.pausing
    if pausing is None:
        return
    state.deadlines.cancel(link.pause_deadline)
    link.pause_deadline = None
    if not all(pausing.values()):
        link.credit_s = max(0.0, link.credit_s - (now - link.credit_at))
    link.credit_at = now
    link.pausing = None
    for publisher in pausing:
        _let_go(state, publisher, link, now)


def withdraw(state: State, publisher: Link) -> None:
    """A paused publisher is gone: nobody needs to let go of it."""
    for link in publisher.paused_by or ():
        if link.pausing is not None:
            link.pausing.pop(publisher, None)
    publisher.paused_by = None
    publisher.paused = False


def _let_go(state: State, publisher: Link, link: Link, now: float) -> None:
    if publisher.paused_by is None:
        return
    publisher.paused_by.discard(link)
    if not publisher.paused_by:
        publisher.paused = False
        publisher.last_received_at = now  # its keepalive stood still
        state.mark_ready(publisher)
