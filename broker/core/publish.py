"""The way of a message: alias, limits, access, retained store, route, and to each recipient at the lesser QoS; then the answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import structs

from broker.core.access import is_bridge_state
from broker.core.deadlines import RETAINED_EXPIRY
from broker.core.delivery import deliver
from broker.core.gates import note
from broker.core.kept import Expiring, Kept, kept_of, size_as_kept
from broker.core.link import CONNECTED
from broker.core.message import ApplicationMessage
from broker.core.pumping import pump
from broker.core.topic_table import KEPT_TOPIC_LENGTH_MAX, STEPS_PER_WORK_SHIFT
from broker.errors import ProtocolError
from broker.reasons import ReasonCode
from broker.wire.codec import encode_string, encode_within
from broker.wire.packets import MQTT_5, Properties, PubAck, PubComp, Publish, PubRec, PubRel
from broker.wire.topics import topic_name_fault

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State
    from broker.core.topic_table import Route, Target

KNOWN_TOPICS_COUNT_MAX: Final = 4096
"""Topics a link's publishes are recognised by; then it learns anew."""
LEARNED_WORK: Final = 12
"""To learn a topic costs as much as so many deliveries."""


def on_publish(state: State, link: Link, packet: Publish, now: float) -> None:
    promised = link.promised
    session = link.session
    assert session is not None
    state.counters.publish_received += 1
    properties = packet.properties
    if properties.subscription_identifiers:
        raise ProtocolError("PUBLISH with a Subscription Identifier")  # [MQTT5-3.3.4-6]
    if packet.qos > promised.maximum_qos:
        raise ProtocolError(f"PUBLISH at QoS {packet.qos}, above the maximum", ReasonCode.QOS_NOT_SUPPORTED)  # [MQTT5-3.2.2-11]
    if packet.retain and not promised.retain_available:
        if link.is_mqtt_5:
            raise ProtocolError("PUBLISH with RETAIN, which is not supported", ReasonCode.RETAIN_NOT_SUPPORTED)  # [MQTT5-3.2.2-14]
        packet = structs.replace(packet, retain=False)  # 3.1.1 was told of nothing, and would come back with the same message for ever
        state.observer.not_retained(link)
    topic = _topic(link, packet) if not link.mount_point else link.mount_point + _topic(link, packet)
    if packet.qos == 2:
        receiver = session.own_receiver(link)
        if packet.packet_id in receiver.held:
            _answer_pubrec(state, link, packet.packet_id, ReasonCode.SUCCESS)  # [MQTT5-4.3.3-10]
            return
        # 3.1.1 was told of no maximum: there the 65,535 numbers are the bound.
        if link.is_mqtt_5 and len(receiver.held) >= receiver.held_count_max:
            raise ProtocolError("more unfinished QoS 2 messages than the Receive Maximum", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)  # [MQTT5-3.3.4-7]
    interval = properties.message_expiry_interval
    expires_at = math.inf if interval is None else now + interval
    message = ApplicationMessage(topic, packet.payload, packet.qos, packet.retain, properties, session.client_id, expires_at)
    reason = _refusal(state, link, message)
    if reason is not None and (packet.qos == 0 or not link.is_mqtt_5):
        state.count_dropped(session.client_id, "not-accepted")  # its publisher cannot be told
    if reason is None:
        reason = publish(state, message, link, now)
        if link.phase != CONNECTED:
            # Its own overflow rule has closed it, and nothing comes after a DISCONNECT [MQTT5-3.14.4-1]; but others may have the message.
            if packet.qos == 2 and not reason.failed:
                session.receiver.on_publish(packet.packet_id)
                note(state, session)
            return
        if not packet.retain and packet.topic and message.properties is properties:
            learn(state, link, topic, encode_string(topic))
        elif not packet.retain and properties.topic_alias is not None and properties == Properties(topic_alias=properties.topic_alias):
            learn(state, link, topic, _alias_key(properties.topic_alias))
    if packet.qos == 1:
        answer_puback(state, link, packet.packet_id, reason)
    elif packet.qos == 2:
        if not reason.failed or not link.is_mqtt_5:
            session.receiver.on_publish(packet.packet_id)
            note(state, session)
        _answer_pubrec(state, link, packet.packet_id, reason)  # [MQTT5-4.3.3-8, -9]


def _topic(link: Link, packet: Publish) -> str:
    """The Topic Name, by way of the Topic Alias if it has one (MQTT 5.0, 3.3.2.3.4)."""
    alias = packet.properties.topic_alias
    if alias is None:
        return packet.topic
    if alias > link.promised.topic_alias_maximum:
        raise ProtocolError(f"Topic Alias {alias} is above the maximum", ReasonCode.TOPIC_ALIAS_INVALID)  # [MQTT5-3.3.2-9]
    if link.aliases_in is None:
        link.aliases_in = {}
    if packet.topic:
        if link.aliases_in.get(alias) != packet.topic:
            link.aliases_in[alias] = packet.topic
            link.known_topics.pop(_alias_key(alias), None)
        return packet.topic
    topic = link.aliases_in.get(alias)
    if topic is None:
        raise ProtocolError(f"Topic Alias {alias} has not been set")  # [MQTT5-3.3.2-7]
    return topic


def _refusal(state: State, link: Link, message: ApplicationMessage) -> ReasonCode | None:
    """Why this client's message is not taken, or None. 3.1.1 has no word for it: it is acknowledged and dropped [MQTT311-3.3.5-2]."""
    topic = message.topic
    if topic.count("/") >= link.limits.filter_levels_max or (link.mount_point and topic_name_fault(topic) is not None):  # too long, then
        return ReasonCode.TOPIC_NAME_INVALID
    if (topic.startswith("$SYS/") and not is_bridge_state(topic)) or not may_publish(link, topic):
        return ReasonCode.NOT_AUTHORIZED
    if message.retain and not may_retain(state, message, link.is_mqtt_5):
        return ReasonCode.QUOTA_EXCEEDED
    return None


def may_retain(state: State, message: ApplicationMessage, is_mqtt_5: bool) -> bool:
    """Is there a place for one more retained message, or is none needed?"""
    if not message.payload:
        return True
    if state.over_memory_for_later(size_as_kept(message, is_mqtt_5)):
        return False
    return len(state.retained) < state.limits.retained_count_max or state.retained.get(message.topic) is not None


def may_publish(link: Link, topic: str) -> bool:
    access = link.access
    return access.allows_all or access.may(link.username, link.client_id, "publish", topic)


def learn(state: State, link: Link, topic: str, key: bytes) -> None:
    """Recognise the topic in this link's next frames by its bytes; that it is known says that it is valid and permitted, as the caller has seen."""
    known = link.known_topics
    if key in known or link.phase != CONNECTED or link.mount_point or topic.startswith("$SYS/"):
        return
    if len(topic) > KEPT_TOPIC_LENGTH_MAX:
        return
    if len(known) >= KNOWN_TOPICS_COUNT_MAX:
        known.clear()
    state.work += LEARNED_WORK
    known[key] = route = state.topics.route(topic)
    if link.access.allows_all and not key.startswith(b"\x00\x00"):  # an alias is this link's alone
        state.topics.remember(key, route)


def recognise(state: State, link: Link, key: bytes) -> Route | None:
    """A topic that this link has not published to, or not lately, but somebody has, where everybody may."""
    if not link.access.allows_all or link.mount_point:
        return None
    route = state.topics.remembered.get(key)
    if route is not None and route.topic.count("/") >= link.limits.filter_levels_max:
        return None  # the others' limits are not its own
    if route is not None:
        known = link.known_topics
        if len(known) >= KNOWN_TOPICS_COUNT_MAX:
            known.clear()
        known[key] = route
    return route


def _alias_key(alias: int) -> bytes:
    """What stands in the place of the topic where an alias does: an empty topic, and properties that are the alias alone."""
    return b"\x00\x00\x03\x23" + alias.to_bytes(2, "big")


def publish(state: State, message: ApplicationMessage, publisher: Link | None, now: float) -> ReasonCode:
    """Store it if it is to be retained, and give it to everybody who subscribed. The answer is for the publisher's acknowledgement.

    A client's message has been looked at already (`_refusal`); a Will that finds no place among the retained ones is delivered all the same.
    The retained store is a recipient too: what it has taken was not refused by all (docs/decisions/0012-quota-exceeded.md).
    """
    kept = message.retain and (publisher is not None or may_retain(state, message, False))
    if message.retain and not kept and message.origin:
        state.count_dropped(message.origin, "not-accepted")  # a Will: as a retained message it is lost, and nobody is there to be told
    if kept:
        store_retained(state, message, publisher is not None and publisher.is_mqtt_5)
    return route(state, message, publisher, now, kept)


def store_retained(state: State, message: ApplicationMessage, is_mqtt_5: bool) -> None:
    """Replace the topic's retained message [MQTT5-3.3.1-5], or remove it when the payload is empty [MQTT5-3.3.1-6, -7]."""
    if not message.payload:
        replaced(state, None, state.retained.clear(message.topic))
        return
    kept = kept_of(message, is_mqtt_5)
    replaced(state, kept, state.retained.put(message.topic, message.topic_field, kept))


def replaced(state: State, kept: Kept | None, gone: Kept | None) -> None:
    """One retained message has come in place of another, or of none: the timers of those that expire."""
    if isinstance(gone, Expiring):
        state.deadlines.cancel(gone.deadline)
        gone.deadline = None
    if isinstance(kept, Expiring):
        kept.deadline = state.deadlines.add(kept.expires_at, RETAINED_EXPIRY, kept)


def route(state: State, message: ApplicationMessage, publisher: Link | None, now: float, taken: bool) -> ReasonCode:
    """taken: somebody has it already."""
    way = state.topics.route(message.topic)
    state.work += way.size >> STEPS_PER_WORK_SHIFT  # each filter's identifier is in the copy, and each one's No Local may have to be asked
    targets = way.targets
    groups = way.groups
    matched = False
    state.refused = False
    if way.any_no_local:
        targets = _without_local(targets, message.origin)
    for target in targets:
        matched = True
        qos = message.qos if message.qos < target.qos else target.qos  # [MQTT5-3.8.4-8]
        retain = message.retain and target.retain_as_published  # [MQTT5-3.3.1-12, -13]
        if deliver(state, target.session, message, qos, retain, target.identifiers, None, publisher, way, now):
            taken = True
    for group in groups:
        member = group.choose(message.qos, message.topic)
        state.work += group.steps_count >> 4
        if member is None:
            continue
        matched = True
        identifiers = (member.identifier,) if member.identifier else ()
        retain = message.retain and member.retain_as_published
        qos = min(message.qos, member.qos)  # [MQTT5-4.8.2-3]
        if deliver(state, member.session, message, qos, retain, identifiers, group, publisher, way, now):
            taken = True
    if not matched:
        return ReasonCode.NO_MATCHING_SUBSCRIBERS
    return ReasonCode.SUCCESS if taken and not state.refused else ReasonCode.QUOTA_EXCEEDED


def _without_local(targets: list[Target], origin: str) -> list[Target]:
    """The targets of a message that `origin` published, less what it does not want back [MQTT5-3.8.3-3]."""
    kept: list[Target] = []
    for target in targets:
        if target.session.client_id != origin:
            kept.append(target)
            continue
        others = target.without_local()
        if others is not None:
            kept.append(others)
    return kept


# ---- acknowledgements ----


def answer_puback(state: State, link: Link, packet_id: int, reason: ReasonCode) -> None:
    _answer(state, link, b"\x40", packet_id, reason)


def _answer_pubrec(state: State, link: Link, packet_id: int, reason: ReasonCode) -> None:
    _answer(state, link, b"\x50", packet_id, reason)


def _answer(state: State, link: Link, first_byte: bytes, packet_id: int, reason: ReasonCode) -> None:
    """PUBACK or PUBREC. (As bytes: encoding them as packets was a tenth of a message that nobody wants.)"""
    if reason == 0 or link.version < MQTT_5:
        state.send(link, first_byte + b"\x02" + packet_id.to_bytes(2, "big"))
    elif link.packet_bytes_max >= 5:  # [MQTT5-3.1.2-24]
        state.send(link, first_byte + b"\x03" + packet_id.to_bytes(2, "big") + bytes((reason,)))


def _send_within(state: State, link: Link, packet: PubRel | PubComp) -> None:
    encoded = encode_within(packet, link.version, link.packet_bytes_max)
    if encoded is not None:
        state.send(link, encoded)


def on_puback(state: State, link: Link, packet: PubAck, now: float) -> None:
    session = link.session
    assert session is not None
    note(state, session)
    delivery = session.sender.on_puback(packet.packet_id)
    if delivery is not None:
        session.let_go(delivery.size)
        if packet.reason.failed:
            state.count_dropped(session.client_id, "refused-by-client")
    if session.queue.count or session.replays or session.sender.resend:
        pump(state, link, now)


def on_pubrec(state: State, link: Link, packet: PubRec, now: float) -> None:
    session = link.session
    assert session is not None
    note(state, session)
    failed = packet.reason.failed
    delivery, known = session.sender.on_pubrec(packet.packet_id, failed)
    if delivery is not None:
        session.let_go(delivery.size)
    if not known:
        reason = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if link.is_mqtt_5 else ReasonCode.SUCCESS
        _send_within(state, link, PubRel(packet.packet_id, reason))
    elif not failed:
        state.send(link, b"\x62\x02" + packet.packet_id.to_bytes(2, "big"))  # [MQTT5-4.3.3-4]
    elif delivery is not None:
        state.count_dropped(session.client_id, "refused-by-client")
        pump(state, link, now)


def on_pubrel(state: State, link: Link, packet: PubRel, now: float) -> None:
    session = link.session
    assert session is not None
    note(state, session)
    if session.receiver.on_pubrel(packet.packet_id) or not link.is_mqtt_5:
        state.send(link, b"\x70\x02" + packet.packet_id.to_bytes(2, "big"))  # [MQTT5-4.3.3-11]
    else:
        _send_within(state, link, PubComp(packet.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND))


def on_pubcomp(state: State, link: Link, packet: PubComp, now: float) -> None:
    session = link.session
    assert session is not None
    note(state, session)
    if session.sender.on_pubcomp(packet.packet_id) and (session.queue.count or session.replays or session.sender.resend):
        pump(state, link, now)
