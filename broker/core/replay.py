"""The retained messages owed to one new subscription: a cursor, pulled when the outbox is low.

Each value is read when it is sent, so the replay is complete, takes no memory of its own, and never shows an older value
than what went live meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.core.retained import ReplayCursor
    from broker.core.subscription import Subscription


class Replay:
    __slots__ = ("cursor", "subscription")

    def __init__(self, cursor: ReplayCursor, subscription: Subscription) -> None:
        self.cursor = cursor
        self.subscription = subscription
