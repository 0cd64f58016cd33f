"""What load is wanted. Publisher p sends to topic p mod T, subscriber s takes topic s mod T: pairs, fan-out and fan-in are numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.wire.packets import MQTT_5, NO_PROPERTIES, Properties

if TYPE_CHECKING:
    from broker.client.authentication import Authentication  # it imports trio, which help pages do without


@dataclass(frozen=True)
class Plan:
    publishers_count: int = 1
    subscribers_count: int = 1
    topics_count: int = 1
    topic: str = "bench"
    """Its topics are this, a slash and a number."""
    qos: int = 0
    payload_bytes: int = 64
    version: int = MQTT_5
    rate: float | None = None
    """Messages a second of all publishers together, on schedule whatever the broker does; None: as fast as `window` allows."""
    window: int = 1000
    """Messages of each publisher under way at once: not yet with all their subscribers, or not yet acknowledged."""
    count: int | None = None
    """Messages of each publisher; None: as many as `duration_s` gives."""
    duration_s: float = 5.0
    """Of publishing, after the warm-up."""
    warmup_s: float = 1.0
    """Of publishing before anything is measured; loss and order are watched all the same."""
    drain_s: float = 2.0
    """What is owed is waited for, until nothing has come for so long."""
    client_id: str = ""
    """Beginning of the client ids; empty: something random."""
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    auth: Authentication | None = None
    """Over AUTH, instead of user name and password in CONNECT."""
    keep_alive_s: int = 60
    connect_properties: Properties = NO_PROPERTIES
    publish_properties: Properties = NO_PROPERTIES

    def topic_of(self, number: int) -> str:
        """All of one length, so that no topic is longer on the wire than another."""
        return f"{self.topic}/{number % self.topics_count:0{len(str(self.topics_count - 1))}d}"

    def fan_out(self, publisher: int) -> int:
        """How many subscribers each of its messages goes to."""
        whole, rest = divmod(self.subscribers_count, self.topics_count)
        return whole + (publisher % self.topics_count < rest)
