"""`connect`: from where and who to an open Client, and out of its scope again with the right goodbye.

The body's own exception, or ours, leaves bare: it is taken out of the nursery before the nursery can wrap it, and raised after.
"""

from __future__ import annotations

import functools
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, ParamSpec, Protocol, TypeVar

import trio
from msgspec import structs

from broker.client.authentication import Authentication
from broker.client.client import Client
from broker.client.connection import Connector, password_bytes, unwrap
from broker.client.driver import Driver
from broker.client.reconnect import Reconnect
from broker.core.client import ClientProtocol
from broker.core.client_connect import connect_packet
from broker.core.client_state import PACKET_BYTES_MAX, ClientOptions, OnPacket
from broker.errors import ConnectionLost, NotSupported
from broker.messages import UserProperties, Version, Will, user_property_pairs, whole_seconds
from broker.net.dial import Target, dial, parse_url
from broker.net.memory import memory_stream_pair
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.framing import PACKET_BYTES_LARGEST
from broker.wire.packets import MQTT_5, MQTT_31, MQTT_311, NO_PROPERTIES, Properties
from broker.wire.primitives import encode_string

VERSIONS: Final[Mapping[str, int]] = {"5.0": MQTT_5, "3.1.1": MQTT_311, "3.1": MQTT_31}

_URL_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "client_id": str,
    "username": str,
    "password": str,
    "version": str,
    "keep_alive_s": int,
    "session_expiry_s": float,
    "connect_timeout_s": float,
    "close_grace_s": float,
    "receive_maximum": int,
    "outgoing_count_max": int,
    "unclaimed_grace_s": float,
    "packet_bytes_max": int,
    "topic_alias_maximum": int,
    "bind_address": str,
}

P = ParamSpec("P")
T = TypeVar("T")


class Attachable(Protocol):
    """A Broker in this Trio run, or whatever else serves a byte stream to its end."""

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None: ...


def _url_options(function: Callable[P, T]) -> Callable[P, T]:
    """Let the URL's user, password and query stand for keywords that were not given."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        where = args[0] if args else kwargs.get("where")
        if isinstance(where, str):
            for key, value in url_keywords(parse_url(where)).items():
                kwargs.setdefault(key, value)
        return function(*args, **kwargs)

    return wrapper


def url_keywords(target: Target) -> dict[str, Any]:
    """The keywords of `connect` that a URL gives. ValueError for a key that is none, or a value of the wrong kind."""
    keywords: dict[str, Any] = {}
    if target.username is not None:
        keywords["username"] = target.username
    if target.password is not None:
        keywords["password"] = target.password
    for key, text in target.options:
        if key not in _URL_KEYS:
            raise ValueError(f"the URL's ?{key}= is none of {', '.join(_URL_KEYS)}")
        try:
            keywords[key] = _URL_KEYS[key](text)
        except ValueError:
            raise ValueError(f"the URL's ?{key}= must be {'a whole number' if _URL_KEYS[key] is int else 'a number'}") from None
    return keywords


@_url_options
def connect(
    where: str | Attachable,
    *,
    client_id: str = "",
    username: str | None = None,
    password: str | bytes | Callable[[], str | bytes] | None = None,
    version: Version = "5.0",
    keep_alive_s: int = 60,
    clean_start: bool = True,
    session_expiry_s: float = 0,
    will: Will | None = None,
    reconnect: Reconnect | None = Reconnect(),  # noqa: B008  # immutable in use; None means "never", so it cannot stand for the default
    connect_timeout_s: float = 10,
    close_grace_s: float = 5,
    receive_maximum: int = 100,
    outgoing_count_max: int = 1000,
    unclaimed_grace_s: float = 10,
    packet_bytes_max: int = PACKET_BYTES_MAX,
    topic_alias_maximum: int = 16,
    user_properties: UserProperties = (),
    tls: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
    auth: Authentication | None = None,
    connect_properties: Properties | None = None,
    disconnect_properties: Properties | None = None,
    bind_address: str | None = None,
    nodelay: bool = True,
    on_packet: OnPacket | None = None,
) -> AbstractAsyncContextManager[Client]:
    """A client of the broker at `where`, for as long as the scope is open.

    where: mqtt[s]://[user[:password]@]host[:1883|:8883][?key=value], ws[s]://host[:80|:443]/path, unix:///absolute/path, or a
    Broker in this Trio run (memory streams, no socket). Parts are percent-decoded, IPv6 stands in brackets, query keys are
    the str, int and float keywords above (client_id=, keep_alive_s=, ...); keywords win; a path on mqtt:// or an unknown key is
    a ValueError. A socket connected to itself counts as refused. headers: sent with a WebSocket's handshake, for proxies that want a
    token; ValueError with any other URL. auth: `ScramSHA256(user, password)`, `Token(...)` or another `Authentication`, over AUTH (MQTT 5.0).
    tls: for mqtts and wss, and for mqtt and ws, which are then TLS too; None trusts whom the system trusts.
    password: itself, or what gives the newest one (a token that ends, say) for each connection.

    Entered after CONNACK; the first failure raises ConnectError or ConnectRefused (unless Reconnect(first=True)). Left normally:
    waits close_grace_s for what is under way, then DISCONNECT 0x00. Cancelled: DISCONNECT 0x00, no wait. Left by another
    exception: 0x04, so the Will is published. When the connection is gone and will not come back, the body is cancelled and
    ConnectionLost raised. Exceptions arrive bare.

    The low-level doors: connect_properties are put over the computed CONNECT properties, field by field;
    disconnect_properties are said with the goodbye, however the scope ends (`Client.disconnect` has keywords for them); bind_address is the local
    address to dial from; nodelay=False leaves Nagle's algorithm on; on_packet("sent" or "received", packet, frame) is called
    for each packet with its bytes, and may neither wait nor raise.
    """
    _check_kinds(where, client_id, username, will, reconnect, auth)
    for name, seconds in (("connect_timeout_s", connect_timeout_s), ("close_grace_s", close_grace_s), ("unclaimed_grace_s", unclaimed_grace_s)):
        _check_seconds(name, seconds)
    level = VERSIONS.get(version)
    if level is None:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, not {version!r}")
    _check_range("outgoing_count_max", outgoing_count_max, 1, 60_000)
    expiry_s = whole_seconds(session_expiry_s, "session_expiry_s")
    properties = NO_PROPERTIES if connect_properties is None else connect_properties
    if auth is not None:
        properties = _authenticating(properties, auth, level)
    will_properties = NO_PROPERTIES if will is None else will.message.properties
    if level < MQTT_5 and (expiry_s or user_properties or properties is not NO_PROPERTIES or will_properties is not NO_PROPERTIES):
        raise NotSupported("session_expiry_s and the properties of CONNECT and Will need MQTT 5.0")
    if level < MQTT_5 and not client_id and not clean_start:
        raise ValueError(f"clean_start=False needs a client_id in MQTT {version}")
    if level == MQTT_31 and not client_id:
        client_id = f"broker-{secrets.token_hex(8)}"  # 3.1 has no empty Client Identifier; 23 characters are its most
    _check_range("keep_alive_s", keep_alive_s, 0, 65_535)
    _check_range("topic_alias_maximum", topic_alias_maximum, 0, 65_535)
    _check_range("receive_maximum", receive_maximum, 1, 65_535)
    _check_range("packet_bytes_max", packet_bytes_max, 1, PACKET_BYTES_LARGEST)
    options = ClientOptions(
        client_id=client_id,
        version=level,
        clean_start=clean_start,
        keep_alive_s=keep_alive_s,
        session_expiry_s=expiry_s,
        will=None if will is None else will.message,
        username=username,
        password=None if callable(password) else password_bytes(password),
        receive_maximum=properties.receive_maximum or receive_maximum,
        packet_bytes_max=properties.maximum_packet_size or packet_bytes_max,
        topic_alias_maximum=topic_alias_maximum if properties.topic_alias_maximum is None else properties.topic_alias_maximum,
        user_properties=user_property_pairs(user_properties),
        connect_properties=properties,
        disconnect_properties=NO_PROPERTIES if disconnect_properties is None else disconnect_properties,
    )
    _check_connect(options)
    core = ClientProtocol(options, on_packet)
    core.goodbye.check(options.disconnect_properties)
    address, dialler = _dialler(where, tls, bind_address, nodelay, headers)
    driver = Driver(core, address, outgoing_count_max=outgoing_count_max, unclaimed_grace_s=unclaimed_grace_s)
    newest = password if callable(password) else None
    return _connected(driver, Client(driver, version), dialler, address, reconnect, connect_timeout_s, close_grace_s, auth, newest)


def _check_kinds(where: Any, client_id: Any, username: Any, will: Any, reconnect: Any, auth: Any) -> None:
    """What has no type checker behind it is told in words what was meant."""
    if not isinstance(where, str) and not hasattr(where, "attach"):
        raise TypeError(f"where must be a URL or a Broker, not {type(where).__name__}")
    for name, text in (("client_id", client_id), ("username", username)):
        if not isinstance(text, str) and (text is not None or name == "client_id"):
            raise TypeError(f"{name} must be str, not {type(text).__name__}")
    if will is not None and not isinstance(will, Will):
        raise TypeError(f"will must be a Will, not {type(will).__name__}")
    if auth is not None and (isinstance(auth, type) or not hasattr(auth, "method") or not hasattr(auth, "begin")):
        raise TypeError("auth must be ScramSHA256(user, password), Token(token) or another Authentication")
    if reconnect is not None and not isinstance(reconnect, Reconnect):
        raise TypeError(f"reconnect must be a Reconnect, or None for never, not {type(reconnect).__name__}")


def _authenticating(properties: Properties, auth: Authentication, level: int) -> Properties:
    """With the method that `auth` has."""
    if level < MQTT_5:
        raise NotSupported("auth= needs MQTT 5.0")
    if properties.authentication_method is not None or properties.authentication_data is not None:
        raise ValueError("auth= says the Authentication Method and Data: leave them out of connect_properties")
    return structs.replace(properties, authentication_method=auth.method)


def _check_connect(options: ClientOptions) -> None:
    """What CONNECT cannot say is told here, and not by every attempt."""
    for name, text in (("client_id", options.client_id), ("username", options.username or "")):
        try:
            encode_string(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    try:
        encode(connect_packet(options, options.client_id, options.clean_start), options.version)
    except ValueError as error:
        raise ValueError(f"CONNECT cannot be sent so: {error}") from None


def _check_seconds(name: str, value: float) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")


def _check_range(name: str, value: int, least: int, greatest: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if not least <= value <= greatest:
        raise ValueError(f"{name} must be from {least:,} to {greatest:,}, not {value!r}")


def _dialler(
    where: str | Attachable, tls: ssl.SSLContext | None, bind_address: str | None, nodelay: bool, headers: Mapping[str, str] | None
) -> tuple[str, Any]:
    """(the address for people, what dials it)."""
    target = parse_url(where) if isinstance(where, str) else None
    if target is not None and target.scheme in ("ws", "wss"):
        from broker.net import websocket  # late: see there

        websocket.header_list(headers or {})  # what is wrong with them is said here, and not in every attempt
    elif headers:
        raise ValueError("headers= goes with ws:// and wss:// only")
    if target is not None:

        async def dial_target(keeper: trio.Nursery) -> trio.abc.Stream:
            return await dial(target, tls=tls, bind_address=bind_address, nodelay=nodelay, keeper=keeper, headers=headers)

        return target.address, dial_target

    assert not isinstance(where, str)
    attachable = where

    async def attach(keeper: trio.Nursery) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        keeper.start_soon(attachable.attach, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    return "in-process", attach


@asynccontextmanager
async def _connected(
    driver: Driver,
    client: Client,
    dialler: Any,
    address: str,
    policy: Reconnect | None,
    connect_timeout_s: float,
    close_grace_s: float,
    auth: Authentication | None,
    password: Callable[[], str | bytes] | None,
) -> AsyncIterator[Client]:
    body = trio.CancelScope()
    connector = Connector(
        driver.core,
        dialler,
        address,
        policy,
        connect_timeout_s=connect_timeout_s,
        close_grace_s=close_grace_s,
        handle=driver.handle,
        lost=driver.connection_lost,
        failed=driver.fail,
        due=(driver.router.next_deadline, driver.router.tick),
        turns=driver.router,
        auth=auth,
        password=password,
    )
    driver.attach_connector(connector, body.cancel)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connector.run)
            try:
                with body:
                    await client.wait_connected()
                    yield client
                    with trio.move_on_after(close_grace_s):
                        await driver.wait_idle()
            except BaseException as caught:
                error = caught
            finally:
                _say_goodbye(connector, error)
    except BaseExceptionGroup as group:
        # Only KeyboardInterrupt and the like come this way; the connector hands over what is an Exception.
        raise unwrap(group) from None
    finally:
        driver.end()
    lost = driver.failure
    if error is None:
        if lost is not None:
            raise lost
        return
    raise lost if lost is not None and _is_only_lost(error) else error


def _say_goodbye(connector: Connector, error: BaseException | None) -> None:
    """0x00 after a good end and a cancellation, which does not wait for the broker's side; 0x04 after any other exception."""
    if error is None:
        connector.close(ReasonCode.SUCCESS)
    elif _is_cancellation(error):
        connector.close(ReasonCode.SUCCESS, linger=False)
    else:
        connector.close(ReasonCode.DISCONNECT_WITH_WILL)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancellation, error.exceptions))
    return isinstance(error, trio.Cancelled)


def _is_only_lost(error: BaseException) -> bool:
    """Nothing but what tasks of the body got to hear of the lost connection, however their nurseries wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_only_lost, error.exceptions))
    return isinstance(error, ConnectionLost)
