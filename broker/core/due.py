"""What is to be done when a timer is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.core import pausing
from broker.core.admission import time_out
from broker.core.deadlines import (
    AUTHENTICATION_END,
    CONNECT_TIMEOUT,
    KEEP_ALIVE,
    PAUSE_CREDIT,
    RATE,
    RETAINED_EXPIRY,
    SESSION_EXPIRY,
    WILL_DELAY,
)
from broker.core.ending import close_link, end_session, publish_will
from broker.core.link import ENDED
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State


def on_due(state: State, kind: int, owner: Any, now: float) -> None:
    if kind == KEEP_ALIVE:
        _keep_alive_due(state, owner, now)
    elif kind == SESSION_EXPIRY:
        state.counters.clients_expired += 1
        end_session(state, owner, now)
    elif kind == WILL_DELAY:
        publish_will(state, owner, now)
    elif kind == RETAINED_EXPIRY:
        owner.deadline = None
        state.retained.drop_expired(owner)
    elif kind == PAUSE_CREDIT:
        pausing.pause_due(state, owner, now)
    elif kind == RATE:
        pausing.waited(state, owner, now)
    elif kind == AUTHENTICATION_END:
        # Not 0x87: it was authorized, for a time; and a client that reads 0x87 does not come back with something newer.
        close_link(state, owner, ReasonCode.MAXIMUM_CONNECT_TIME, "what it authenticated with has expired", now)
    elif kind == CONNECT_TIMEOUT and owner.phase != ENDED:
        time_out(state, owner)


def _keep_alive_due(state: State, link: Link, now: float) -> None:
    """Closed after 1.5 times the Keep Alive without a packet [MQTT5-3.1.2-22]; a link that we do not read is not silent."""
    limit_s = link.keep_alive_s * 1.5
    due_at = now + limit_s if link.paused or link.unread else link.last_received_at + limit_s
    if due_at > now:
        link.deadline = state.deadlines.add(due_at, KEEP_ALIVE, link)
    else:
        close_link(state, link, ReasonCode.KEEP_ALIVE_TIMEOUT, f"nothing came for {limit_s:g} s", now)
