"""What outlives a Network Connection (MQTT 5.0, 4.1): subscriptions, what was promised and not yet delivered, the Will."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker.core.inflight import NO_RECEIVER, NO_SENDER, Receiver, Sender
from broker.core.mount import is_below
from broker.core.owed import Unacknowledged
from broker.core.subscription import Subscription
from broker.core.waiting import NOTHING_WAITS, Account, WaitingQueue

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.core.deadlines import Deadline
    from broker.core.limits import Limits
    from broker.core.link import Link
    from broker.core.message import ApplicationMessage
    from broker.core.record import Record
    from broker.core.replay import Replay
    from broker.wire.packets import WillMessage

NEVER_EXPIRES: Final = 0xFFFF_FFFF
"""As a Session Expiry Interval."""

Sink = Callable[["ApplicationMessage", int, bool, float], None]


class Session:
    """Keyed by Client Identifier [MQTT5-3.1.3-2]. Serves a client while `link` is set, waits for it while it is not.

    A session of the broker's own house has a `sink` instead, which is called for each message and never waits.
    """

    __slots__ = (
        "access", "account", "allowance", "asked", "client_id", "dropped", "ended", "expiry_deadline", "expiry_s", "inflight_bytes", "link",
        "more_places", "mount_point", "order", "queue", "receiver", "record", "replays", "sender", "sink", "subscriptions", "username", "will",
        "will_deadline",
    )  # fmt: skip

    def __init__(
        self,
        client_id: str,
        access: Access,
        allowance: Allowance,
        account: Account,
        username: str | None = None,
        sink: Sink | None = None,
        mount_point: str = "",
    ) -> None:
        self.client_id = client_id
        self.access = access
        self.allowance = allowance
        self.account = account
        """Of all that is held for clients."""
        self.username = username
        self.sink = sink
        self.mount_point = mount_point
        self.link: Link | None = None
        self.subscriptions: dict[str, Subscription] = {}
        """By Topic Filter, as subscribed, `$share/...` included."""
        self.more_places = 0
        """What long and deep ones count for beside one each: `topic_table.more_places`."""
        self.asked: Subscription | None = None
        """The newest one, for the filters that it subscribes to alike."""
        self.sender: Sender[Unacknowledged] = NO_SENDER
        self.inflight_bytes = 0
        """What `sender` keeps until it is acknowledged."""
        self.receiver: Receiver = NO_RECEIVER
        self.queue: WaitingQueue = NOTHING_WAITS
        """QoS 1 and 2 messages not yet sent: the client is away, at its Receive Maximum, or its outbox is full."""
        self.replays: dict[str, Replay] | None = None
        """Retained messages still to be sent for new subscriptions, by Topic Filter."""
        self.order = 0
        self.expiry_s: float = 0.0
        """Session Expiry Interval, `math.inf` for never."""
        self.expiry_deadline: Deadline | None = None
        self.will: WillMessage | None = None
        self.will_deadline: Deadline | None = None
        self.dropped: dict[str, int] | None = None
        """Messages not delivered to it, by reason."""
        self.ended = False
        self.record: Record | None = None
        """What the store has of it, if it is to outlive the process."""

    def subscription(self, qos: int, no_local: bool, retain_as_published: bool, identifier: int, wild: bool = False) -> Subscription:
        """With these options: the last one again if it has them too, as most have."""
        asked = self.asked
        if (
            asked is None
            or asked.qos != qos
            or asked.identifier != identifier
            or asked.no_local is not no_local
            or asked.retain_as_published is not retain_as_published
            or asked.wild is not wild
        ):
            asked = self.asked = Subscription(self, qos, no_local, retain_as_published, identifier, wild)
        return asked

    # ---- what is made when it is first needed ----

    def own_sender(self, link: Link) -> Sender[Unacknowledged]:
        """`sender`, for something that is to be sent, with the quota that this connection began with."""
        if self.sender is NO_SENDER:
            self.sender = Sender()
            self.sender.begin(link.inflight_count_max)
        return self.sender

    def own_receiver(self, link: Link) -> Receiver:
        """`receiver`, for a message that has come at QoS 2."""
        if self.receiver is NO_RECEIVER:
            self.receiver = Receiver()
            self.receiver.begin(link.held_count_max)
        return self.receiver

    def own_queue(self) -> WaitingQueue:
        """`queue`, for something that is to wait."""
        if self.queue is NOTHING_WAITS:
            self.queue = WaitingQueue(None if self.ended else self.account)
        return self.queue

    def resume(self, link: Link) -> None:
        """A client has come back to it: what the last connection allowed holds no more."""
        if self.sender is not NO_SENDER:
            self.sender.begin(link.inflight_count_max)
        if self.receiver is not NO_RECEIVER:
            self.receiver.begin(link.held_count_max)

    # ---- what is under way ----

    def hold(self, size: int) -> None:
        """A message of so many bytes was sent and is to be acknowledged; that of a session which has ended never will be."""
        if self.ended:
            return
        self.inflight_bytes += size
        self.account.inflight_bytes += size

    def let_go(self, size: int) -> None:
        """It was acknowledged, or will not be sent after all."""
        if self.ended:
            return
        self.inflight_bytes -= size
        self.account.inflight_bytes -= size

    def may_receive(self, topic: str) -> bool:
        if self.mount_point and not is_below(self.mount_point, topic):
            return False
        return self.access.allows_all or self.access.may(self.username, self.client_id, "receive", topic)

    @property
    def limits(self) -> Limits:
        """Those of its link, while it has one. Not kept: they may change while its client is away."""
        return self.allowance.of(self.username)

    def has_room(self, qos: int) -> bool:
        """Could a message of this QoS leave at once? (For the choice of a shared group's member.)"""
        link = self.link
        if link is None:
            return self.sink is not None
        if link.outbox.committed_bytes >= link.outbox_bytes_high:
            return False
        return qos == 0 or (self.own_sender(link).quota > 0 and not self.queue.count)

    @property
    def lasts(self) -> bool:
        """Does it stay when its connection ends?"""
        return self.expiry_s > 0

    @property
    def never_expires(self) -> bool:
        return self.expiry_s == math.inf


def granted_expiry_s(wanted: int, limit: int) -> float:
    """What becomes of a Session Expiry Interval that a client has asked for."""
    return float(min(wanted, limit)) if limit < NEVER_EXPIRES or wanted < NEVER_EXPIRES else math.inf
