"""What outlives the process, as plain rows: what `core.journal` writes down and `core.restoring` makes sessions of.

A store need not know what they mean: each kind has a key (its first fields), a row with the same key takes the place of the older one, and
a Session's rows all begin with its number, under which they go together. Times are Unix time, in seconds; None: never, or not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

WAITING: Final = 0
"""A message that is still to be sent: its key is its order."""
SENT: Final = 1
"""A message that is not acknowledged, or its PUBREL that is not: its key is its Packet Identifier."""


class SavedSession(NamedTuple):
    """Key: number. listener: where its client last came in, which says by which rules; expiry_s None: it never expires; left_at None: its client
    was there."""

    number: int
    client_id: str
    username: str | None
    mount_point: str
    listener: str
    expiry_s: float | None
    left_at: float | None


class SavedSubscription(NamedTuple):
    """Key: session, filter. options: the byte of SUBSCRIBE, without its retain handling, and two bits of `core.record`; identifier 0: none."""

    session: int
    filter: str
    options: int
    identifier: int


class SavedMessage(NamedTuple):
    """Key: session, place, key. frame: a PUBLISH as it was to be sent, with any Packet Identifier, of that version; None: it has come, and only
    its PUBREL is to be acknowledged. identifiers: the recipient's, "1 2". share: of which shared subscription's group it is, "" for none."""

    session: int
    place: int
    key: int
    order: int
    frame: bytes | None
    version: int
    identifiers: str
    share: str
    expires_at: float | None


class SavedId(NamedTuple):
    """Key: both. A QoS 2 message with this id has come from the session's client, and is not released."""

    session: int
    packet_id: int


class SavedWill(NamedTuple):
    """Key: number, of Wills. Of a client that has not taken it back, whether its Session lasts or not. properties: encoded, with their length;
    due_at: when it goes out; None: its client was there, or it goes out with its Session."""

    number: int
    client_id: str
    username: str | None
    listener: str
    topic: str
    payload: bytes
    qos: int
    retain: int
    properties: bytes
    due_at: float | None


class SavedRetained(NamedTuple):
    """Key: topic. frame: see `core.kept`."""

    topic: str
    frame: bytes
    expires_at: float | None


class Changes:
    """From one moment to another. To be written all or not at all: first the sessions in `ended` go with all that is theirs, and of those in
    `cut`, pairs of (session, order), the waiting messages whose order is below that; then what is gone, then the rows.

    number: to be told to `Engine.committed` when they are written.
    """

    __slots__ = (
        "cut", "ended", "ids", "ids_gone", "messages", "messages_gone", "number", "retained", "retained_gone", "sessions", "subscriptions",
        "subscriptions_gone", "wills", "wills_gone",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.ended: list[int] = []
        self.cut: list[tuple[int, int]] = []
        self.sessions: list[SavedSession] = []
        self.subscriptions: list[SavedSubscription] = []
        self.subscriptions_gone: list[tuple[int, str]] = []
        self.messages: list[SavedMessage] = []
        self.messages_gone: list[tuple[int, int, int]] = []
        self.ids: list[SavedId] = []
        self.ids_gone: list[tuple[int, int]] = []
        self.wills: list[SavedWill] = []
        self.wills_gone: list[int] = []
        self.retained: list[SavedRetained] = []
        self.retained_gone: list[str] = []


class Saved(Protocol):
    """All that a store has: each session before what is its own, messages of one session and place by their order."""

    @property
    def sessions(self) -> Iterable[SavedSession]: ...
    @property
    def subscriptions(self) -> Iterable[SavedSubscription]: ...
    @property
    def messages(self) -> Iterable[SavedMessage]: ...
    @property
    def ids(self) -> Iterable[SavedId]: ...
    @property
    def wills(self) -> Iterable[SavedWill]: ...
    @property
    def retained(self) -> Iterable[SavedRetained]: ...
