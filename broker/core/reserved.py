"""Client Identifiers that are kept for those who come in by one listener: for the house's own clients, whose Sessions nobody else is to get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.ending import close_link, end_session
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.core.session import Session
    from broker.core.state import State


def reserve(state: State, client_id: str, listener: str, now: float) -> None:
    """A Session that somebody else has under it ends."""
    if state.reserved.get(client_id) == listener:
        return
    state.reserved[client_id] = listener
    session = state.sessions.get(client_id)
    if session is not None and _listener_of(session) != listener:
        _drop(state, session, now)


def release(state: State, client_id: str, now: float) -> None:
    """It is anybody's again, and the Session under it ends."""
    del state.reserved[client_id]
    session = state.sessions.get(client_id)
    if session is not None:
        _drop(state, session, now)


def drop_unreserved(state: State, listener: str, now: float) -> list[str]:
    """End the Sessions of who came in by that listener, but for those whose Client Identifiers are reserved; whose they were."""
    left = [session for session in state.sessions.values() if _listener_of(session) == listener and session.client_id not in state.reserved]
    for session in left:
        _drop(state, session, now)
    return [session.client_id for session in left]


def _drop(state: State, session: Session, now: float) -> None:
    if session.link is not None:
        close_link(state, session.link, ReasonCode.ADMINISTRATIVE_ACTION, "its Client Identifier is not its own any more", now)
    end_session(state, session, now)


def _listener_of(session: Session) -> str:
    """By which its client came in, if it is here or that is in the store."""
    if session.link is not None:
        return session.link.listener
    return session.record.listener if session.record is not None else ""
