"""What has been read and not worked through, counted for all clients: a packet that has not come in full, what a rate or a pause holds
back, a CONNECT while it is asked who its client is, what is sent ahead of CONNACK.

Together that may take the last eighth of `memory_bytes_max`, of which only Wills take a part; so those who begin large packets and never
end them cost nobody a queued message or a small packet. Who gives way is `receiving.make_room`'s to say; one large packet at a time always
comes through. A client whose packets are all worked through in the read that brought them is not even looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

FREE_BYTES: Final = 4_096
"""Whoever holds no more may go on, whatever others do."""


def count(state: State, link: Link) -> bool:
    """After it was read: bring the account up to date. True: somebody has to give way."""
    if link.closing:
        abandon(state, link)
        link.decoder.abandon()
    _set(state, link, held_bytes(link))
    account = state.waiting
    return account.large_count > 1 and account.receiving_bytes > state.receiving_bytes_max


def held_bytes(link: Link) -> int:
    """What it comes to, for one link that is served."""
    held = link.decoder.held_bytes
    if link.rate is not None:
        held += link.rate.held_bytes
    question = link.auth
    if question is not None and not question.done:
        held += question.asked_bytes + question.answer_bytes
    return held


def abandon(state: State, link: Link) -> None:
    """Nothing that it has sent will be looked at any more. (What was read last may be being looked at: that goes with its stream.)"""
    link.decoder.abandon_frame()
    if link.rate is not None:
        link.rate.abandon()
    if link.receiving_bytes:
        _set(state, link, len(link.decoder.data))


def leave_account(state: State, link: Link) -> None:
    """Its stream is gone, or it is to go."""
    link.decoder.abandon()
    if link.rate is not None:
        link.rate.abandon()
    _set(state, link, 0)


def _set(state: State, link: Link, held: int) -> None:
    account = state.waiting
    before = link.receiving_bytes
    account.receiving_bytes += held - before
    account.large_count += (held > FREE_BYTES) - (before > FREE_BYTES)
    link.receiving_bytes = held
