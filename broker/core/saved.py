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
"""A message that is not acknowledged: its key is its Packet Identifier."""

RELEASED: Final = 0
"""Packet Identifiers of messages that have come, as the client has said; only their PUBRELs are to be acknowledged. In the order of its PUBRECs."""
HELD: Final = 1
"""Of QoS 2 messages that have come from the client, and are not released."""


class SavedSession(NamedTuple):
    """Key: number. listener: where its client last came in, which says by which rules, unless it has rights of its own (`Access.own`);
    expiry_s None: it never expires; left_at None: its client was there."""

    number: int
    client_id: str
    username: str | None
    mount_point: str
    listener: str
    expiry_s: float | None
    left_at: float | None
    rights: str = ""


class SavedSubscription(NamedTuple):
    """Key: session, filter. options: the byte of SUBSCRIBE, without its retain handling, and two bits of `core.record`; identifier 0: none."""

    session: int
    filter: str
    options: int
    identifier: int


class SavedMessage(NamedTuple):
    """Key: session, place, key. frame: a PUBLISH as it was to be sent, with any Packet Identifier, of that version. identifiers: the recipient's,
    "1 2". share: of which shared subscription's group it is, "" for none."""

    session: int
    place: int
    key: int
    order: int
    frame: bytes
    version: int
    identifiers: str
    share: str
    expires_at: float | None


class SavedRun(NamedTuple):
    """Key: number, of runs. Messages on one topic that came together, and are not all acknowledged. order: while they wait, of the first of them as
    if it were a message by itself; when some have been sent, among those of `SENT`. frames: PUBLISH packets as they came, all of that size and
    version, or nothing where `shared` is the number of the row that has them. places: see `places`."""

    number: int
    session: int
    order: int
    qos: int
    size: int
    version: int
    shared: int
    places: bytes
    frames: bytes


class SavedShared(NamedTuple):
    """Key: number, of its kind. Frames of a run that several sessions have."""

    number: int
    frames: bytes


class SavedIds(NamedTuple):
    """Key: session, kind. ids: two bytes each."""

    session: int
    kind: int
    ids: bytes


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
    rights: str = ""


class SavedRetained(NamedTuple):
    """Key: topic. frame: see `core.kept`."""

    topic: str
    frame: bytes
    expires_at: float | None


def places(left_count: int, ids: bytes, count: int) -> bytes:
    """What has become of each of so many messages of a run: two bytes say how many have left the queue, and then come two for each, which are the
    Packet Identifier while it is unacknowledged, and else 0. Always of one length, so that a row that changes stays where it is."""
    return left_count.to_bytes(2, "big") + ids + bytes(2 * count - len(ids))


class Changes:
    """From one moment to another. To be written all or not at all: first the sessions in `ended` go with all that is theirs but runs, and of those
    in `cut`, pairs of (session, order), the waiting messages whose order is below that; then what is gone, then the rows, and what has become of runs
    that were written before, triples of (order, places, number).

    number: to be told to `Engine.committed` when they are written.
    """

    __slots__ = (
        "cut", "ended", "ids", "ids_gone", "messages", "messages_gone", "number", "retained", "retained_gone", "runs", "runs_changed",
        "runs_gone", "sessions", "shared", "shared_gone", "subscriptions", "subscriptions_gone", "wills", "wills_gone",
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
        self.runs: list[SavedRun] = []
        self.runs_changed: list[tuple[int, bytes, int]] = []
        self.runs_gone: list[int] = []
        self.shared: list[SavedShared] = []
        self.shared_gone: list[int] = []
        self.ids: list[SavedIds] = []
        self.ids_gone: list[tuple[int, int]] = []
        self.wills: list[SavedWill] = []
        self.wills_gone: list[int] = []
        self.retained: list[SavedRetained] = []
        self.retained_gone: list[str] = []


class Saved(Protocol):
    """All that a store has; waiting messages of one session by their order."""

    @property
    def sessions(self) -> Iterable[SavedSession]: ...
    @property
    def subscriptions(self) -> Iterable[SavedSubscription]: ...
    @property
    def messages(self) -> Iterable[SavedMessage]: ...
    @property
    def shared(self) -> Iterable[SavedShared]: ...
    @property
    def runs(self) -> Iterable[SavedRun]: ...
    @property
    def ids(self) -> Iterable[SavedIds]: ...
    @property
    def wills(self) -> Iterable[SavedWill]: ...
    @property
    def retained(self) -> Iterable[SavedRetained]: ...
