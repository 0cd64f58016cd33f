"""The client: `connect`, and what it gives. A package, since the layer test knows rooms and one file could not hold it."""

from __future__ import annotations

from broker.channel import Subscription
from broker.client.client import Client
from broker.client.connect import connect
from broker.client.reconnect import Reconnect
from broker.messages import Message, QoS, Will

__all__ = ["Client", "Message", "QoS", "Reconnect", "Subscription", "Will", "connect"]
