"""SUBSCRIBE and UNSUBSCRIBE: each filter by itself, one answer for all, then the retained messages that are owed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.gates import note
from broker.core.mount import mounted_filter
from broker.core.pumping import pump
from broker.core.replay import Replay
from broker.core.topic_table import DEEP_LEVELS, more_places
from broker.errors import ProtocolError
from broker.reasons import ReasonCode
from broker.wire.codec import encode, encode_varint
from broker.wire.packets import MQTT_5, SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe
from broker.wire.topics import split_shared, topic_filter_fault

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State

GRANTED: Final = (ReasonCode.SUCCESS, ReasonCode.GRANTED_QOS_1, ReasonCode.GRANTED_QOS_2)
"""The reason code for each QoS; calling the enum took a tenth of a subscription's time."""
_GRANTED_BYTES: Final = (b"\x00", b"\x01", b"\x02")
_SEPARATORS: Final = ("\0\0", "\1\0", "\2\0")
_NOT_SUPPORTED: Final = {
    ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: "shared subscriptions are not supported",
    ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED: "wildcard subscriptions are not supported",
}


def on_subscribe(state: State, link: Link, packet: Subscribe, now: float) -> None:
    session = link.session
    assert session is not None
    identifiers = packet.properties.subscription_identifiers
    if identifiers and not link.promised.subscription_identifier_available:
        raise ProtocolError("Subscription Identifiers are not supported", ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED)
    if link.is_mqtt_5:
        _refuse_unavailable(link, packet)
    _refuse_unanswerable(link, len(packet.subscriptions))
    identifier = identifiers[0] if identifiers else 0
    # As if each came in a packet of its own [MQTT5-3.8.4-5], with one combined answer [MQTT5-3.8.4-6] before anything that follows from it.
    reasons = tuple([_subscribe(state, link, session, request, identifier) for request in packet.subscriptions])
    state.work += len(reasons)
    state.send(link, encode(SubAck(packet.packet_id, reasons), link.version))
    if session.replays:
        pump(state, link, now)


def subscribe_alike(state: State, link: Link, body: bytes) -> bool:
    """The short way of an ordinary SUBSCRIBE: all its filters are at one QoS and want nothing else, and nothing stands in their way or is
    retained for them. False: nothing was done, it is for `on_subscribe`, which says what is wrong with it, if anything is."""
    session = link.session
    limits = link.limits
    if session is None or session.replays or link.mount_point or not link.access.allows_all:
        return False
    start = 2
    if link.version >= MQTT_5:
        start = 3
        if len(body) < 3 or body[2] != 0:  # properties
            return False
    qos = body[-1]
    if qos > link.promised.maximum_qos or qos > 2:
        return False
    filters = _alike(body, start, qos)
    if not filters or not (body[0] or body[1]):
        return False
    if len(session.subscriptions) + session.more_places + len(filters) > limits.subscriptions_count_max or 8 + len(filters) > link.packet_bytes_max:
        return False
    retained = state.retained if len(state.retained) else None
    literals: list[str] = []
    wildcards: list[str] = []
    for filter in filters:
        if len(filter) >= limits.filter_levels_max or filter[0] == "$":
            return False
        if "+" in filter or "#" in filter:
            if topic_filter_fault(filter) is not None or filter.count("/") >= DEEP_LEVELS:
                return False
            wildcards.append(filter)
        else:
            literals.append(filter)
        if retained is not None and retained.may_match(filter):
            return False
    if wildcards and not link.promised.wildcard_subscription_available:
        return False
    subscription = session.subscription(qos, False, False, 0)
    if literals:
        state.topics.add_literals(literals, subscription)
    for filter in wildcards:
        state.topics.add(filter, subscription)
    if session.record is not None:
        session.record.filters.update(dict.fromkeys(filters))
        note(state, session, len(filters))
    state.work += len(filters)
    answer = body[:start] + _GRANTED_BYTES[qos] * len(filters)
    state.send(link, b"\x90" + encode_varint(len(answer)) + answer)
    return True


def _alike(body: bytes, start: int, qos: int) -> list[str] | None:
    """The filters of a SUBSCRIBE from `start` on, if all are short, ASCII and at this QoS with no other options; else None.

    What stands between two of them is then always the same: the options of one and the first byte of the next one's length. So they are
    taken apart by splitting there; that each has the length it says proves that it was right to.
    """
    fields = body[start + 1 : -1]
    if not fields.isascii() or body[start] != 0:
        return None
    text = str(fields, "ascii")
    separator = _SEPARATORS[qos]
    filters: list[str] = []
    for field in text.split(separator):
        filter = field[1:]
        if not filter or ord(field[0]) != len(filter):
            return None
        filters.append(filter)
    if text.count("\0") != separator.count("\0") * (len(filters) - 1):
        return None  # one of them has U+0000 in it
    return filters


def _unavailable(link: Link, filter: str) -> ReasonCode | None:
    promised = link.promised
    wildcards = promised.wildcard_subscription_available
    if wildcards and not filter.startswith("$"):
        return None
    group, plain = split_shared(filter)
    if group is not None and not promised.shared_subscription_available:
        return ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
    if not wildcards and ("+" in plain or "#" in plain):
        return ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED
    return None


def _refuse_unavailable(link: Link, packet: Subscribe) -> None:
    """What CONNACK said is not there may not be asked for; the connection ends before any filter has acted (MQTT 5.0, 3.2.2.3)."""
    for request in packet.subscriptions:
        if request.no_local and split_shared(request.filter)[0] is not None:
            raise ProtocolError("No Local on a shared subscription")  # [MQTT5-3.8.3-4]
        reason = _unavailable(link, request.filter)
        if reason is not None:
            raise ProtocolError(_NOT_SUPPORTED[reason], reason)


def _refuse_unanswerable(link: Link, count: int) -> None:
    """An answer with `count` codes that the client has no room for may be neither sent [MQTT5-3.1.2-24] nor left out [MQTT5-3.8.4-1]
    [MQTT5-3.10.4-4]: the connection ends before any filter has acted."""
    remaining = 3 + count  # packet id, no properties, the codes
    if 1 + len(encode_varint(remaining)) + remaining > link.packet_bytes_max:
        raise ProtocolError("the answer would be larger than the client's Maximum Packet Size", ReasonCode.PACKET_TOO_LARGE)


def _subscribe(state: State, link: Link, session: Session, request: SubscriptionRequest, identifier: int) -> ReasonCode:
    limits = link.limits
    filter = request.filter
    if topic_filter_fault(filter) is not None:
        return ReasonCode.TOPIC_FILTER_INVALID
    if not link.is_mqtt_5:
        unavailable = _unavailable(link, filter)  # no CONNACK told it: each filter is refused by itself [MQTT311-3.8.3-2]
        if unavailable is not None:
            return unavailable
    wild = False
    if link.mount_point:
        wild = split_shared(filter)[1].startswith(("+", "#"))
        filter = mounted_filter(link.mount_point, filter)
    if filter.count("/") >= limits.filter_levels_max:
        return ReasonCode.TOPIC_FILTER_INVALID
    is_new = filter not in session.subscriptions
    if is_new and len(session.subscriptions) + session.more_places + more_places(filter) >= limits.subscriptions_count_max:
        return ReasonCode.QUOTA_EXCEEDED
    if not link.access.allows_all and not link.access.may(link.username, link.client_id, "subscribe", filter):
        return ReasonCode.NOT_AUTHORIZED
    shared = filter.startswith("$share/")  # it is well-formed
    # Never at a shared subscription (4.8.2) [MQTT5-3.3.1-9, -10, -11]; 3.1.1 always sends [MQTT311-3.8.4-3].
    owed = not shared and (request.retain_handling == 0 or (request.retain_handling == 1 and is_new))
    if owed:
        replays_count = 0
        if session.replays:
            session.replays.pop(filter, None)
            replays_count = len(session.replays)
        if replays_count >= limits.retained_replays_count_max:
            return ReasonCode.QUOTA_EXCEEDED
    qos = request.qos
    if qos > link.promised.maximum_qos:
        qos = link.promised.maximum_qos  # [MQTT5-3.2.2-10]
    subscription = session.subscription(qos, request.no_local, request.retain_as_published, identifier, wild)
    state.topics.add(filter, subscription)
    if session.record is not None:
        session.record.filters[filter] = None
        note(state, session)
    if owed and state.retained.may_match(filter):
        if session.replays is None:
            session.replays = {}
        session.replays[filter] = Replay(state.retained.cursor(filter), subscription)
    return GRANTED[qos]


def on_unsubscribe(state: State, link: Link, packet: Unsubscribe, now: float) -> None:
    session = link.session
    assert session is not None
    _refuse_unanswerable(link, len(packet.filters))
    filters = packet.filters if not link.mount_point else [mounted_filter(link.mount_point, filter) for filter in packet.filters]
    reasons = tuple(
        ReasonCode.SUCCESS if state.topics.remove(session, filter) else ReasonCode.NO_SUBSCRIPTION_EXISTED  # [MQTT5-3.10.4-1, -5]
        for filter in filters
    )
    if session.record is not None:
        session.record.filters.update(dict.fromkeys(filters))
        note(state, session, len(filters))
    if session.replays:
        for filter in filters:
            session.replays.pop(filter, None)  # one that comes again begins anew, if it is owed anything [MQTT5-3.3.1-11]
    state.work += len(reasons)
    state.send(link, encode(UnsubAck(packet.packet_id, reasons), link.version))
