"""Rows become messages again, or turn out to be damaged."""

from __future__ import annotations

import math
from struct import unpack
from typing import TYPE_CHECKING, Final

from broker.core.kept import topic_at, topic_end
from broker.core.message import ApplicationMessage
from broker.core.owed import Delivery, Unacknowledged
from broker.errors import PeerError
from broker.wire.packets import MQTT_5, NO_PROPERTIES, PUBLISH
from broker.wire.primitives import read_varint
from broker.wire.properties import decode_properties

if TYPE_CHECKING:
    from broker.core.saved import SavedMessage
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.subscription import SharedGroup

DAMAGE: Final = (PeerError, ValueError, IndexError)
"""What is raised for a frame in which a disk has turned bits: it is lost, and the others are not."""

Sent = tuple[int, list[int], Unacknowledged]
"""Order, Packet Identifiers, and what was sent with them."""


def delivery_of(state: State, session: Session, row: SavedMessage, to_engine_s: float) -> Delivery:
    frame = row.frame
    at = topic_at(frame)
    stop = topic_end(frame)
    payload_at = stop + 2  # behind the packet id
    properties = NO_PROPERTIES
    if row.version >= MQTT_5:
        properties, payload_at = decode_properties(frame, payload_at, PUBLISH)
    if payload_at > len(frame):
        raise ValueError("it ends in its head")
    topic = str(frame[at + 2 : stop], "utf-8")
    qos = frame[0] >> 1 & 3
    retain = frame[0] & 1 != 0
    expires_at = math.inf if row.expires_at is None else row.expires_at + to_engine_s
    message = ApplicationMessage(topic, frame[payload_at:], qos, retain, properties, "", expires_at, frame[at:stop])
    identifiers = tuple([int(identifier) for identifier in row.identifiers.split()])
    group = _group(state, session, row.share, topic) if row.share else None
    return Delivery(message, qos, retain, identifiers, group, row.order)


def _group(state: State, session: Session, name: str, topic: str) -> SharedGroup | None:
    """The shared subscription's group of that name that chose this session for a message on that topic, if it is still a member."""
    for group in state.topics.route(topic).groups:
        if group.name == name and group.has(session):
            return group
    return None


def is_frame_of(data: bytes, size: int) -> bool:
    """Does it say itself that it has so many bytes?"""
    length, position = read_varint(data, 1)
    return position + length == size


def numbers_of(ids: bytes) -> list[int]:
    count = len(ids) // 2
    return list(unpack(f">{count}H", ids[: 2 * count]))
