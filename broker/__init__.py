"""An MQTT 5.0, 3.1.1 and 3.1 broker and client, built on Trio.

    open_broker, serve      a broker in a Trio program (Broker, Config, Listener, TlsFiles, TlsName, Limits, LimitOverrides, ClientInfo,
                            SubscriptionInfo)
    broker_thread           one in a thread of its own, for asyncio, plain programs and tests (BrokerThread)
    connect                 a client of any broker (Client, Subscription, Message, Will, QoS, Reconnect)
    BrokerError             the root of all errors raised on purpose; ReasonCode is what a peer says
    Authenticate, Authorize who may come in, and do what (ConnectRequest)

Durations end in _s and are seconds, math.inf for "never"; sizes end in _bytes_max, counts in _count_max. A payload is bytes-like, or
text that is sent as UTF-8. Every async function is a Trio checkpoint and is bounded by the caller's cancel scope: none takes a timeout.
Exceptions arrive bare, never in an ExceptionGroup made here.

The public names are fetched when they are first used (PEP 562): `import broker` imports neither trio nor anything else of weight, so
that the command line's help and the pytest plugin start at once.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    compiled: bool
    """Do the hot modules of wire and core run as machine code (docs/performance.md), or in pure Python?"""

    from broker.bridge.settings import Bridge as Bridge
    from broker.bridge.settings import BridgeInfo as BridgeInfo
    from broker.bridge.settings import BridgeTls as BridgeTls
    from broker.bridge.settings import BridgeTopic as BridgeTopic
    from broker.channel import Subscription as Subscription
    from broker.client.authentication import ScramSHA256 as ScramSHA256
    from broker.client.authentication import Token as Token
    from broker.client.client import Client as Client
    from broker.client.connect import connect as connect
    from broker.client.reconnect import Reconnect as Reconnect
    from broker.config import Config as Config
    from broker.core.access import Authorize as Authorize
    from broker.core.allowance import LimitOverrides as LimitOverrides
    from broker.core.limits import Limits as Limits
    from broker.errors import BrokerError as BrokerError
    from broker.errors import ConfigError as ConfigError
    from broker.errors import ConnectError as ConnectError
    from broker.errors import ConnectionLost as ConnectionLost
    from broker.errors import ConnectRefused as ConnectRefused
    from broker.errors import DeliveryUnknown as DeliveryUnknown
    from broker.errors import InvalidTopic as InvalidTopic
    from broker.errors import ListenError as ListenError
    from broker.errors import MessageExpired as MessageExpired
    from broker.errors import NotSupported as NotSupported
    from broker.errors import Offline as Offline
    from broker.errors import PublishRefused as PublishRefused
    from broker.errors import StoreError as StoreError
    from broker.errors import SubscribeRefused as SubscribeRefused
    from broker.errors import SubscriptionExists as SubscriptionExists
    from broker.hub import Broker as Broker
    from broker.inspection import ClientInfo as ClientInfo
    from broker.inspection import SubscriptionInfo as SubscriptionInfo
    from broker.messages import Message as Message
    from broker.messages import Overflow as Overflow
    from broker.messages import Payload as Payload
    from broker.messages import QoS as QoS
    from broker.messages import UserProperties as UserProperties
    from broker.messages import Version as Version
    from broker.messages import Will as Will
    from broker.net.authentication import Authenticate as Authenticate
    from broker.net.authentication import ConnectRequest as ConnectRequest
    from broker.net.listener import Listener as Listener
    from broker.net.tls import TlsFiles as TlsFiles
    from broker.net.tls import TlsName as TlsName
    from broker.opening import open_broker as open_broker
    from broker.opening import serve as serve
    from broker.reasons import ReasonCode as ReasonCode
    from broker.thread import BrokerThread as BrokerThread
    from broker.thread import broker_thread as broker_thread

_ROOMS = {
    "bridge.settings": ("Bridge", "BridgeInfo", "BridgeTls", "BridgeTopic"),
    "channel": ("Subscription",),
    "client.authentication": ("ScramSHA256", "Token"),
    "client.client": ("Client",),
    "client.connect": ("connect",),
    "client.reconnect": ("Reconnect",),
    "config": ("Config",),
    "core.access": ("Authorize",),
    "core.allowance": ("LimitOverrides",),
    "core.limits": ("Limits",),
    "errors": (
        "BrokerError", "ConfigError", "ConnectError", "ConnectRefused", "ConnectionLost", "DeliveryUnknown", "InvalidTopic", "ListenError",
        "MessageExpired", "NotSupported", "Offline", "PublishRefused", "StoreError", "SubscribeRefused", "SubscriptionExists",
    ),
    "hub": ("Broker",),
    "inspection": ("ClientInfo", "SubscriptionInfo"),
    "messages": ("Message", "Overflow", "Payload", "QoS", "UserProperties", "Version", "Will"),
    "net.authentication": ("Authenticate", "ConnectRequest"),
    "net.listener": ("Listener",),
    "net.tls": ("TlsFiles", "TlsName"),
    "opening": ("open_broker", "serve"),
    "reasons": ("ReasonCode",),
    "thread": ("BrokerThread", "broker_thread"),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)

# What help() says of a name that stands for a type and is none.
_WORDS = {
    "Authenticate": "async (ConnectRequest) -> the user name by which the client is known from now on; None refuses it (0x86).",
    "Authorize": '(user name, client id, "publish", "receive" or "subscribe", topic or filter) -> may it? Synchronous; asked once for a topic, and '
    "the answer kept until Broker.forget_permissions.",
    "Overflow": "What happens to a message whose recipient has no room left. drop-oldest: the one that waited longest goes; drop-newest: this one "
    "goes; latest: one is kept for each topic, the newest; disconnect: the recipient is closed; refuse: this one goes, and its "
    "publisher is told (0x97).",
    "Payload": "bytes, bytearray, memoryview, or str, which is sent as UTF-8.",
    "UserProperties": "(name, value) pairs, or a mapping; the pairs may repeat a name.",
    "Version": "MQTT's version, as connect(version=...) takes it.",
}


def __getattr__(name: str) -> object:
    value: object
    if name == "compiled":
        value = _is_compiled()
    elif name in _ROOM_OF:
        value = getattr(importlib.import_module(f"broker.{_ROOM_OF[name]}"), name)
        if name in _WORDS:
            with contextlib.suppress(AttributeError):  # Python 3.14's unions take none
                value.__doc__ = _WORDS[name]
    else:
        raise AttributeError(f"module 'broker' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, and what every module has."""
    return sorted({*(name for name in globals() if name.startswith("__")), *_ROOM_OF, "compiled"})


def _is_compiled() -> bool:
    """The same file that an import would take is looked up, and not loaded: all hot modules are compiled, or none is."""
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import find_spec

    spec = find_spec("broker.core.engine")
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)
