"""Every number that the broker tells of itself: what it is called in `Broker.statistics()`, on the page for Prometheus and below $SYS/broker/.

There is no other list: what is counted anew gets a row here, and is told in all of these places, or says by a name that is missing where it is
not (tests/metrics/test_table.py). No row names a client, a user, an address or a topic, so no stranger can make the page longer, or read
on it who is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from broker.net.tally import REFUSALS

Statistics: TypeAlias = Mapping[str, int | float]
Kind: TypeAlias = Literal["counter", "gauge"]
Unit: TypeAlias = Literal["", "bytes", "seconds"]

PREFIX: Final = "mqtt_broker_"

REASONS: Final = (
    "overflow", "queue-full", "too-large", "expired", "disconnected", "session-ended", "unacknowledged", "refused-by-client", "not-authorized",
    "not-accepted", "damaged",
)  # fmt: skip
"""Why a message was not delivered (docs/reliability.md)."""


class Number(Struct, frozen=True, kw_only=True):
    """One number. key: of statistics. name: on the page, behind PREFIX and without what its unit and kind add; None: not there. label: what tells
    it from others of that name, of which the sum means something too. everywhere: told as 0 where nothing has been counted yet. topics: below
    $SYS/broker/. load: below $SYS/broker/load/, as rates (Prometheus makes its own)."""

    key: str
    kind: Kind
    name: str | None = None
    help: str = ""
    unit: Unit = ""
    label: tuple[str, str] | None = None
    everywhere: bool = False
    topics: tuple[str, ...] = ()
    load: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The name on the page; a counter's has "_total" behind it there."""
        return f"{PREFIX}{self.name}_{self.unit}" if self.unit else f"{PREFIX}{self.name}"


_DROPPED_HELP: Final = "Messages that were not delivered, by reason; docs/reliability.md says what each means."
_NOT_LET_IN_HELP: Final = "Clients that were not let in, by the reason in their CONNACK; no-connect: they sent no CONNECT that could be understood."
_REFUSED_HELP: Final = (
    "Connections that were refused before MQTT: listener-full is connections_count_max, the others are connections_per_address_max and "
    "connects_per_address_per_s_max."
)
_CARRIED_HELP: Final = "Messages that the bridge carried, out to the other broker or in from it, and that were acknowledged."
_TIMEOUTS_HELP: Final = "Connections of the bridge that were given up because the other broker did not answer within answer_timeout_s."
_MEMORY_HELP: Final = (
    "Bytes that count against memory_bytes_max, by kind; their sum matters. From three quarters of it on, messages for clients that are away are "
    "dropped."
)


def _memory(kind: str, key: str, topics: tuple[str, ...]) -> Number:
    return Number(key=key, kind="gauge", name="memory", unit="bytes", help=_MEMORY_HELP, label=("kind", kind), topics=topics)


def _refused(reason: str) -> Number:
    key = f"refused_{reason.replace('-', '_')}"
    return Number(key=key, kind="counter", name="connections_refused", help=_REFUSED_HELP, label=("reason", reason))


OF_BRIDGES: Final = (
    Number(key="connected", kind="gauge", name="bridge_connected", help="Is the bridge connected to the other broker? 1 or 0."),
    Number(key="out_count", kind="counter", name="bridge_messages", help=_CARRIED_HELP, label=("direction", "out")),
    Number(key="in_count", kind="counter", name="bridge_messages", help=_CARRIED_HELP, label=("direction", "in")),
    Number(key="timeouts_count", kind="counter", name="bridge_timeouts", help=_TIMEOUTS_HELP),
    Number(key="dropped", kind="counter", name="bridge_messages_dropped", help="Messages that the bridge did not carry, by reason."),
)
"""What each bridge tells of itself: key is of `Broker.bridges`. Their names are the operator's own words, so they may be labels."""

NUMBERS: Final = (
    # ---- clients ----
    Number(
        key="clients_connected",
        kind="gauge",
        name="clients_connected",
        help="Clients that are connected.",
        topics=("clients/connected", "clients/active"),
    ),
    Number(
        key="clients_maximum",
        kind="gauge",
        name="clients_connected_maximum",
        help="The most clients that have been connected at a time since the start.",
        topics=("clients/maximum",),
    ),
    Number(
        key="clients_total",
        kind="gauge",
        name="sessions",
        help="Sessions, of clients that are connected and of those that are away.",
        topics=("clients/total",),
    ),
    Number(
        key="clients_expired",
        kind="counter",
        name="sessions_expired",
        help="Sessions that ended because their client stayed away for longer than they last.",
        topics=("clients/expired",),
    ),
    Number(
        key="subscriptions_count",
        kind="gauge",
        name="subscriptions",
        help="Subscriptions of all sessions, shared ones included.",
        topics=("subscriptions/count",),
    ),
    Number(
        key="shared_subscriptions_count",
        kind="gauge",
        name="shared_subscriptions",
        help="Shared subscriptions ($share/...) of all sessions.",
        topics=("shared_subscriptions/count",),
    ),
    Number(key="connects_count", kind="counter", name="connects", help="Clients that were let in: CONNECT packets that were answered with success."),
    *(
        Number(
            key=f"connects_refused_{reason.replace('-', '_')}",
            kind="counter",
            name="connects_refused",
            help=_NOT_LET_IN_HELP,
            label=("reason", reason),
            everywhere=True,
        )
        for reason in REFUSALS
    ),
    Number(
        key="clients_lost_count",
        kind="counter",
        name="clients_lost",
        help="Clients that ended without a DISCONNECT of theirs: the connection broke, Keep Alive passed, another took over, they were thrown out.",
    ),
    Number(
        key="violations_count",
        kind="counter",
        name="protocol_violations",
        help="Connections that ended because what came was no MQTT, or against its rules.",
    ),
    # ---- connections ----
    Number(key="connections_open_count", kind="gauge", name="connections_open", help="Connections of clients that are open, handshakes included."),
    Number(
        key="connections_blocked_count",
        kind="gauge",
        name="connections_blocked",
        help="Open connections whose other end does not read fast enough: what is to be sent waits.",
    ),
    Number(key="accepted_count", kind="counter", name="connections_accepted", help="Connections that came to a listener and were let in."),
    Number(
        key="accept_errors_count",
        kind="counter",
        name="accept_errors",
        help="Connections that could not be accepted. If it rises, the limit on open files may be reached (ulimit -n).",
    ),
    Number(key="refused_connections_count", kind="counter"),
    _refused("listener-full"),
    _refused("address-count"),
    _refused("address-rate"),
    Number(
        key="connections_count",
        kind="counter",
        name="links",
        help="Connections that came as far as MQTT: their handshakes are done. Those inside of the program itself are counted too.",
        load=("connections", "sockets"),
    ),
    Number(key="links_count", kind="gauge", name="links_open", help="Open connections that have come as far as MQTT."),
    Number(key="addresses_open", kind="gauge", name="addresses_open", help="IPv4 addresses, and /64 of IPv6, that connections are open from."),
    Number(
        key="addresses_remembered",
        kind="gauge",
        name="addresses_remembered",
        help="Addresses whose rate of connecting is remembered (connects_per_address_per_s_max).",
    ),
    Number(
        key="held_up_count",
        kind="counter",
        name="rate_holds",
        help="How often a client that sent faster than it may was not read for a while (publish_per_s_max, receive_bytes_per_s_max).",
    ),
    # ---- traffic ----
    Number(
        key="bytes_received",
        kind="counter",
        name="received",
        unit="bytes",
        help="Bytes of MQTT packets received, without what TLS and WebSocket add.",
        topics=("bytes/received",),
        load=("bytes/received",),
    ),
    Number(
        key="bytes_sent",
        kind="counter",
        name="sent",
        unit="bytes",
        help="Bytes of MQTT packets sent, without what TLS and WebSocket add.",
        topics=("bytes/sent",),
        load=("bytes/sent",),
    ),
    Number(
        key="packets_received",
        kind="counter",
        name="packets_received",
        help="MQTT packets of any type received.",
        topics=("messages/received",),
        load=("messages/received",),
    ),
    Number(
        key="packets_sent",
        kind="counter",
        name="packets_sent",
        help="MQTT packets of any type sent.",
        topics=("messages/sent",),
        load=("messages/sent",),
    ),
    Number(
        key="publish_received",
        kind="counter",
        name="publish_received",
        help="PUBLISH packets received from clients.",
        topics=("publish/messages/received",),
        load=("publish/received",),
    ),
    Number(
        key="publish_sent",
        kind="counter",
        name="publish_sent",
        help="PUBLISH packets sent to clients: one for each recipient.",
        topics=("publish/messages/sent",),
        load=("publish/sent",),
    ),
    Number(key="publish_dropped", kind="counter", topics=("publish/messages/dropped",), load=("publish/dropped",)),
    *(
        Number(
            key=f"dropped_{reason.replace('-', '_')}",
            kind="counter",
            name="messages_dropped",
            help=_DROPPED_HELP,
            label=("reason", reason),
            everywhere=True,
            topics=(f"publish/messages/dropped/{reason}",),
        )
        for reason in REASONS
    ),
    # ---- memory ----
    _memory("queued", "queued_bytes", ("store/messages/bytes", "memory/queued/bytes")),
    _memory("inflight", "inflight_bytes", ("memory/inflight/bytes",)),
    _memory("unsent", "unsent_bytes", ("memory/unsent/bytes",)),
    _memory("retained", "retained_bytes", ("memory/retained/bytes",)),
    _memory("receiving", "receiving_bytes", ("memory/receiving/bytes",)),
    _memory("wills", "will_bytes", ("memory/wills/bytes",)),
    Number(key="memory_bytes", kind="gauge", topics=("memory/bytes",)),
    Number(
        key="memory_bytes_max",
        kind="gauge",
        name="memory_max",
        unit="bytes",
        help="The bound of mqtt_broker_memory_bytes: memory_bytes_max of [limits].",
    ),
    Number(key="queued_count", kind="gauge", name="queued_messages", help="Messages that wait for clients which are away, or slow."),
    Number(
        key="retained_count",
        kind="gauge",
        name="retained_messages",
        help="Retained messages, of $SYS too.",
        topics=("retained messages/count",),
    ),
    Number(key="deadlines_count", kind="gauge", name="timers", help="Timers that are set: of Keep Alive, expiry, Will Delay and the like."),
    # ---- the store, where there is one ----
    Number(
        key="store_writes_count",
        kind="counter",
        name="store_writes",
        help="Writes to the store that are done, each of all that had changed since the one before.",
    ),
    Number(
        key="store_write_s",
        kind="counter",
        name="store_write",
        unit="seconds",
        help="Seconds that these writes took together. A PUBACK waits for one of them or two.",
    ),
    Number(
        key="store_write_errors_count",
        kind="counter",
        name="store_write_errors",
        help="Writes to the store that failed; each is tried again. Meanwhile nothing that has to outlive the broker is acknowledged.",
    ),
    Number(
        key="store_changes_count",
        kind="gauge",
        name="store_changes_waiting",
        help="About how many changes wait for the next write to the store.",
    ),
    Number(
        key="store_behind_s",
        kind="gauge",
        name="store_behind",
        unit="seconds",
        help="For how long the present write to the store has been under way, all its attempts together; 0 if there is none.",
    ),
    # ---- itself ----
    Number(key="uptime_s", kind="gauge"),
)
