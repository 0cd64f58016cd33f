"""The properties that the end-to-end tests send and compare, between plain JSON and paho's objects (aiomqtt uses paho's too)."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

NAMES = {
    "content_type": "ContentType",
    "response_topic": "ResponseTopic",
    "correlation_data": "CorrelationData",
    "message_expiry_s": "MessageExpiryInterval",
    "user_properties": "UserProperty",
}
printing = threading.Lock()


def say(event: str, **fields: Any) -> None:
    """One line of JSON to the test, whole, whichever thread speaks."""
    with printing:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


def to_paho(values: dict[str, Any]) -> Properties | None:
    if not values:
        return None
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        if name == "user_properties":
            value = [tuple(pair) for pair in value]
        elif name == "correlation_data":
            value = value.encode()
        setattr(properties, NAMES[name], value)
    return properties


def from_paho(properties: Properties | None) -> dict[str, Any]:
    values = {name: getattr(properties, long) for name, long in NAMES.items() if properties is not None and hasattr(properties, long)}
    if "correlation_data" in values:
        values["correlation_data"] = values["correlation_data"].decode()
    if "user_properties" in values:
        values["user_properties"] = [list(pair) for pair in values["user_properties"]]
    return values


def session_expiry(seconds: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = seconds
    return properties
