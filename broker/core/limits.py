"""Every bound of the broker in one struct, the unit last in its name. The config's `[limits]` table is this struct.

Nothing in the core grows without one of these. 0 has no special meaning unless the comment says so.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of the TOML's [limits], and keywords of `open_broker`. Bytes are of topic, properties and payload, where they are not a packet's.

    connect_timeout_s: from accept to CONNECT, handshakes and authentication included.
    close_timeout_s: how long a closing connection may take to read what it was sent, and to close its own side.
    keepalive_s_max: told as Server Keep Alive to a client that asks for more (or for none, when this is below 65,535).
    packet_bytes_max: largest packet accepted, fixed header included; refused at the header with 0x95.
    control_bytes_max: largest packet that is no PUBLISH, refused with 0x95 before it is decoded: a filter of four bytes becomes an object of a
        hundred.
    properties_bytes_max: properties of one PUBLISH, refused with 0x95 before they are decoded, for the same reason.
    unauthenticated_bytes_max: what a client may send ahead while its CONNECT is being decided.
    session_expiry_s_max: of a session whose client is away (14 days); for 3.1.1 too, which by themselves never expire.
    client_id_bytes_max: of a Client Identifier in UTF-8; above it 0x85.
    sessions_count_max: sessions, connected or not; a CONNECT beyond is refused with 0x97.
    inflight_count_max: QoS 1 and 2 messages sent and not yet acknowledged, a client (its Receive Maximum may lower it).
    inflight_bytes_max: the same, in bytes; the next one waits until some are acknowledged.
    receive_maximum: the other direction: unfinished QoS 2 messages a client may have with us; beyond it 0x93. As many as there are identifiers, as
        for 3.1.1: there are clients that publish on, whatever they were told, and come back with all of it.
    topic_alias_maximum: Topic Aliases a client may set on a connection, and the most we set towards one.
    maximum_qos: 0, 1 or 2; told in CONNACK.
    retain_available: False: retained messages are refused with 0x9A (3.1.1: passed on, and not retained); told in CONNACK.
    wildcard_subscription_available: False: filters with + or # are refused with 0xA2 (3.1.1: SUBACK 0x80); told in CONNACK.
    subscription_identifier_available: False: Subscription Identifiers are refused with 0xA1; told in CONNACK.
    shared_subscription_available: False: $share/... is refused with 0x9E (3.1.1: SUBACK 0x80); told in CONNACK.
    queue_count_max: QoS 1 and 2 messages waiting, a session.
    queue_bytes_max: the same, in bytes.
    outbox_bytes_high: encoded bytes waiting for one client's socket; above it messages wait unencoded and its publishers are paused.
    outbox_bytes_max: QoS 0 messages waiting unencoded for one client, in bytes; above it the overflow rule acts.
    outbox_count_max: the same, in messages.
    memory_bytes_max: retained messages, all that is held for clients (queued, unacknowledged, encoded and not yet taken by a socket), and
        packets that have not come in full. Absent clients' queues and retained messages end at three quarters, those of connected clients at seven
        eighths: there the overflow rules act, whatever a client's own limits are. The last eighth is for what comes in, above it the
        largest are refused with 0x97, and for Wills, at most half of it: a CONNECT whose Will finds no place is refused with 0x97.
    slow_subscriber_grace_s: the longest that one stuck subscriber may pause its publishers; the credit refills at a tenth of time.
    publish_per_s_max: messages that one client may publish, with bursts of a second's worth; beyond it the client is not read for a while. 0: no
        bound.
    receive_bytes_per_s_max: the same for the bytes of whatever it sends.
    disconnect_above_rate: True: instead of making such a client wait, throw it out (0x96).
    connections_per_user_max: clients connected at a time with one user name; one more is refused with 0x97. 0: no bound.
    connections_per_address_max: of TCP, by IPv4 address or IPv6 /64; more are refused with 0x97, or closed at once. 0: no bound.
    connects_per_address_per_s_max: new connections of one address; more are refused with 0x9F, or closed at once. 0: no bound.
    connects_per_address_burst_max: so many at once, after a silence: all devices of a house come back together when its network does.
    connects_per_client_id_per_s_max: connects with one Client Identifier of one user, counted when it is known who asks; more are refused with 0x9F.
        0: no bound. It ends the war of two devices that have the same one: whoever is connected stays so.
    connects_per_client_id_burst_max: so many at once, after a silence.
    subscriptions_count_max: of one session; a SUBSCRIBE beyond is answered 0x97. A filter counts once more for each KiB, and one with a wildcard for
        each sixteen levels.
    filter_levels_max: levels in a Topic Filter or Topic Name.
    retained_count_max: retained messages of all topics; beyond it a new topic is answered 0x97.
    retained_replays_count_max: retained replays under way or waiting, a session; a SUBSCRIBE filter beyond it is answered 0x97.
    routes_count_max: known topics kept resolved; the oldest go first.
    work_per_turn_max: deliveries, expiries and replayed messages that one call of the core does before it yields, and what costs as much: a packet
        that is looked at by itself counts as sixteen. A call for one of many clients that have much to do does less: see `core.turns`.
    """

    connect_timeout_s: float = 10.0
    close_timeout_s: float = 5.0
    keepalive_s_max: int = 65_535
    packet_bytes_max: int = 16_777_216
    control_bytes_max: int = 524_288
    properties_bytes_max: int = 262_144
    unauthenticated_bytes_max: int = 65_536
    session_expiry_s_max: int = 1_209_600
    client_id_bytes_max: int = 65_535
    sessions_count_max: int = 1_000_000
    inflight_count_max: int = 500
    inflight_bytes_max: int = 67_108_864
    receive_maximum: int = 65_535
    topic_alias_maximum: int = 32
    maximum_qos: int = 2
    retain_available: bool = True
    wildcard_subscription_available: bool = True
    subscription_identifier_available: bool = True
    shared_subscription_available: bool = True
    queue_count_max: int = 100_000
    queue_bytes_max: int = 67_108_864
    outbox_bytes_high: int = 1_048_576
    outbox_bytes_max: int = 8_388_608
    outbox_count_max: int = 100_000
    memory_bytes_max: int = 1_073_741_824
    slow_subscriber_grace_s: float = 1.0
    publish_per_s_max: float = 0.0
    receive_bytes_per_s_max: float = 0.0
    disconnect_above_rate: bool = False
    connections_per_user_max: int = 0
    connections_per_address_max: int = 0
    connects_per_address_per_s_max: float = 0.0
    connects_per_address_burst_max: int = 50
    connects_per_client_id_per_s_max: float = 0.0
    connects_per_client_id_burst_max: int = 10
    subscriptions_count_max: int = 10_000
    filter_levels_max: int = 200
    retained_count_max: int = 1_000_000
    retained_replays_count_max: int = 10_000
    routes_count_max: int = 100_000
    work_per_turn_max: int = 10_000


OUTBOX_BYTES_HIGH_MIN: Final = 1024


def outbox_mark(limits: Limits) -> int:
    """`outbox_bytes_high`, and no more than a sixteenth of all memory: small limits pause before they drop."""
    bytes_high = limits.outbox_bytes_high
    if bytes_high > limits.memory_bytes_max >> 4:
        return min(bytes_high, max(OUTBOX_BYTES_HIGH_MIN, limits.memory_bytes_max >> 4))
    return bytes_high


OF_ALL: Final = frozenset({"memory_bytes_max", "retained_count_max", "routes_count_max", "sessions_count_max", "work_per_turn_max"})
"""Bounds of the broker as a whole: no listener and no user has others."""
OF_STRANGERS: Final = frozenset({
    "client_id_bytes_max", "connect_timeout_s", "connections_per_address_max", "connects_per_address_burst_max",
    "connects_per_address_per_s_max", "unauthenticated_bytes_max",
})  # fmt: skip
"""What holds before anybody knows who a client is: a listener may have others, a user not."""
