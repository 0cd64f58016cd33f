"""Backpressure: a link whose outbox is full pauses those who publish to it, on its credit.

The credit is `slow_subscriber_grace_s`, spent while it pauses somebody and refilled at a tenth of time; when it is used
up the overflow rules act on the slow link alone. (A grace for each episode let one dripping reader cut a healthy one
from 704 to 0.9 MB/s for ever.)

Whoever publishes to nobody but that link may be paced by it, since nobody else suffers: for as long as it takes at least a
`_PROGRESS_SHARE`th of its high mark in `_SOLE_GRACES` graces. One that takes less counts as stuck, and has spent its
credit, until it has taken that much. (It is judged over several graces because a kernel tells of a slow reader in steps:
one that reads 100 kB/s opens its window every one to three seconds.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.credit import Credit
from broker.core.deadlines import PAUSE_CREDIT, RATE

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.rate import Rate
    from broker.core.state import State
    from broker.core.topic_table import Route

_REFILL_RATE: Final = 0.1
_CREDIT_S_MIN: Final = 0.001
"""Less is not worth a pause."""
_SOLE_GRACES: Final = 5
_PROGRESS_SHARE: Final = 64


def press(state: State, publisher: Link, link: Link, route: Route | None, now: float) -> None:
    """`link` has more bytes waiting than it should: do not read `publisher` until it has drained, or its patience is spent.

    route: of the message that came, whose other recipients suffer from the pause.
    """
    session = publisher.session
    if session is None or session.sender.count:
        return  # its reads carry the acknowledgements that drain its own queue
    if link.session is None:
        return  # the overflow rule has just closed it
    pausing = link.pausing
    if pausing is not None and publisher in pausing:
        return
    credit = link.credit
    if credit is None:
        credit = link.credit = Credit(link.limits.slow_subscriber_grace_s, now)
    sole = route is not None and _is_only_recipient(link, publisher, route) and _may_pace(state, link, now)
    if not sole:
        if not credit.charging:
            credit.left_s = min(link.limits.slow_subscriber_grace_s, credit.left_s + _REFILL_RATE * (now - credit.at))
            credit.at = now
        if credit.left_s - (now - credit.at) < _CREDIT_S_MIN:
            return
        credit.charging = True
    if pausing is None:
        link.pausing = pausing = {}
    pausing[publisher] = sole
    if publisher.paused_by is None:
        publisher.paused_by = set()
    publisher.paused_by.add(link)
    publisher.paused = True
    _set_deadline(state, link)


def _is_only_recipient(link: Link, publisher: Link, route: Route) -> bool:
    """Does nobody else who is connected get what this client publishes, as far as its newest topics tell?"""
    own = publisher.session
    if publisher.passed_to is not None and publisher.passed_to != link.client_id:
        return False
    for known in (route, *publisher.known_topics.values()):
        for group in known.groups:
            if len(group.members) > 1 or (group.members and group.members[0].session is not link.session):
                return False
        for target in known.targets:
            if target.session.link is not None and target.session is not link.session and target.session is not own:
                return False
    return True


def _may_pace(state: State, link: Link, now: float) -> bool:
    """A pause for its only publisher begins, or has begun: does it still take enough?"""
    credit = link.credit
    assert credit is not None
    taken = link.outbox.sent_bytes_total - state.bytes_underway(link)
    if taken - credit.progress_mark >= max(1, link.outbox_bytes_high // _PROGRESS_SHARE) or (link.pausing is None and not credit.stuck):
        credit.progress_mark = taken
        credit.progress_at = now
        credit.stuck = False
    elif now >= _progress_due_at(link, credit):
        credit.stuck = True
    return not credit.stuck


def _progress_due_at(link: Link, credit: Credit) -> float:
    """Worked out in one way only: by another one, of floats, it may not be due yet when its timer is, and a clock that stands still would go on
    with nothing else."""
    return credit.progress_at + _SOLE_GRACES * link.limits.slow_subscriber_grace_s


def _set_deadline(state: State, link: Link) -> None:
    """Wake when the credit is spent, or when it is to be seen whether it takes enough, whichever comes first."""
    pausing, credit = link.pausing, link.credit
    assert pausing is not None
    assert credit is not None
    at = _progress_due_at(link, credit)
    if credit.charging:
        spent_at = credit.at + credit.left_s
        if spent_at < at or not any(pausing.values()):
            at = spent_at
    if credit.deadline is None or credit.deadline.at != at:
        state.deadlines.cancel(credit.deadline)
        credit.deadline = state.deadlines.add(at, PAUSE_CREDIT, link)


def pause_due(state: State, link: Link, now: float) -> None:
    """Let go of those who have waited long enough: all if it is stuck, and all that wait on its credit if that is spent."""
    pausing, credit = link.pausing, link.credit
    if credit is None:
        return
    credit.deadline = None
    if pausing is None:
        return
    stuck = any(pausing.values()) and not _may_pace(state, link, now)
    spent = stuck or (credit.charging and credit.left_s - (now - credit.at) < _CREDIT_S_MIN)
    if spent:
        credit.left_s = 0.0
        credit.at = now
        credit.charging = False
        for publisher in [publisher for publisher, sole in pausing.items() if stuck or not sole]:
            del pausing[publisher]
            _let_go(state, publisher, link, now)
    if pausing:
        _set_deadline(state, link)
    else:
        link.pausing = None


def release(state: State, link: Link, now: float) -> None:
    """It has drained, or it is gone: everybody that waited for it goes on."""
    pausing, credit = link.pausing, link.credit
    if pausing is None or credit is None:
        return
    state.deadlines.cancel(credit.deadline)
    credit.deadline = None
    _stop_charging(credit, now)
    credit.stuck = False
    link.pausing = None
    for publisher in pausing:
        _let_go(state, publisher, link, now)


def withdraw(state: State, publisher: Link, now: float) -> None:
    """A paused publisher is gone: nobody needs to let go of it."""
    for link in publisher.paused_by or ():
        pausing, credit = link.pausing, link.credit
        if pausing is not None and credit is not None:
            pausing.pop(publisher, None)
            if all(pausing.values()):
                _stop_charging(credit, now)
    publisher.paused_by = None
    publisher.paused = False
    if publisher.rate is not None:
        state.deadlines.cancel(publisher.rate.deadline)
        publisher.rate.deadline = None


def _stop_charging(credit: Credit, now: float) -> None:
    """Nobody waits on it any more."""
    if credit.charging:
        credit.left_s = max(0.0, credit.left_s - (now - credit.at))
        credit.at = now
        credit.charging = False


def hold_up(state: State, link: Link, rate: Rate, wait_s: float, now: float) -> None:
    """It sends faster than it may: do not read it for so long."""
    rate.deadline = state.deadlines.add(now + wait_s, RATE, link)
    link.paused = True
    state.counters.held_up_count += 1
    state.observer.held_up(link)


def hold_up_anew(state: State, link: Link, rate: Rate, now: float) -> None:
    """Its rate has changed while it was held up: it waits for as long as the new one wants."""
    state.deadlines.cancel(rate.deadline)
    wait_s = rate.wait_s(now)
    if wait_s:
        rate.deadline = state.deadlines.add(now + wait_s, RATE, link)
    else:
        waited(state, link, now)


def waited(state: State, link: Link, now: float) -> None:
    """It may send again."""
    if link.rate is not None:
        link.rate.deadline = None
    _go_on(state, link, now)


def _let_go(state: State, publisher: Link, link: Link, now: float) -> None:
    if publisher.paused_by is None:
        return
    publisher.paused_by.discard(link)
    _go_on(state, publisher, now)


def _go_on(state: State, link: Link, now: float) -> None:
    """Read it again, if nothing else is in the way."""
    if not link.paused_by and (link.rate is None or link.rate.deadline is None):
        link.paused = False
        link.last_received_at = now  # its keepalive stood still
        link.goes_on = True
        state.mark_ready(link)
