"""HAProxy's PROXY protocol, versions 1 and 2: the header in which a proxy says for whom it connects, before anything else is sent.

Whom we believe is a matter of the address that the connection comes from (`proxy_protocol_from`), never of what it says: from there a
header must come, and from elsewhere what looks like one is no MQTT and ends the connection. So nobody can choose the address that
logs, locks and limits see.

`receive` takes the header from the socket and not a byte more, so TLS, WebSocket and MQTT begin behind it as they would without.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

import trio

from broker.net.transport import peer_name

V1_BYTES_MAX: Final = 107
V2_BYTES_MAX: Final = 4096
"""Addresses take 232 at most; the rest are type-length-value fields, which are skipped. (The protocol asks senders for 536 at most.)"""
UNIX: Final = "unix"
"""In `proxy_protocol_from`: whoever comes by a Unix socket."""

_V1: Final = b"PROXY "
_V1_UNKNOWN: Final = b"PROXY UNKNOWN"
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD_BYTES: Final = 16
_V2_VERSION: Final = 2
_LOCAL, _PROXY = 0, 1
_STREAM: Final = 1
_ADDRESS_BYTES: Final = {0: 0, 1: 12, 2: 36, 3: 216}
"""By family: none, IPv4, IPv6, Unix."""


class ProxyFault(ValueError):
    """What came is no header of this protocol; how, in one line."""


class Header(NamedTuple):
    """size: of the header, in bytes. peer: "192.0.2.7:50123", "[2001:db8::7]:50123" or "unix"; None where the proxy speaks for itself
    (LOCAL, a health check), or does not know (UNKNOWN, UNSPEC, no stream): then the connection's own address counts."""

    size: int
    peer: str | None


def parse(data: bytes) -> Header | None:
    """The header at the start of what has come; None while it is not complete. ProxyFault as soon as it cannot become one."""
    if data[:1] == _V1[:1]:
        return _parse_v1(data)
    if data[: len(_V2)] == _V2[: len(data)]:
        return _parse_v2(data) if len(data) >= _V2_HEAD_BYTES else None
    raise ProxyFault("it does not begin with a PROXY header")


def _parse_v1(data: bytes) -> Header | None:
    if data[: len(_V1)] != _V1[: len(data)]:
        raise ProxyFault("it does not begin with a PROXY header")
    end = data.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0:
        if len(data) >= V1_BYTES_MAX:
            raise ProxyFault(f"the line has no end within {V1_BYTES_MAX} bytes")
        return None
    size = end + 2
    line = data[:end]
    if line == _V1_UNKNOWN or line.startswith(_V1_UNKNOWN + b" "):
        return Header(size, None)  # whatever stands behind it means nothing
    fields = line.split(b" ")
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise ProxyFault("expected PROXY TCP4 or TCP6, two addresses and two ports")
    source, _ = _address(fields[1], fields[2]), _address(fields[1], fields[3])
    port, _ = _port(fields[4]), _port(fields[5])
    return Header(size, _name(source, port))


def _address(family: bytes, text: bytes) -> IPv4Address | IPv6Address:
    try:
        if family == b"TCP4":
            return IPv4Address(text.decode("ascii"))
        address = IPv6Address(text.decode("ascii"))
    except ValueError:  # of decoding, too
        raise ProxyFault(f"an address that is none of {family.decode()}") from None
    if address.scope_id is not None:
        raise ProxyFault("an address with a zone")
    return address


def _port(text: bytes) -> int:
    if not (1 <= len(text) <= 5 and text.isdigit()) or (text[:1] == b"0" and len(text) > 1) or int(text) > 65_535:
        raise ProxyFault("a port that is none")
    return int(text)


def _parse_v2(data: bytes) -> Header | None:
    version, command = data[12] >> 4, data[12] & 0x0F
    family, kind = data[13] >> 4, data[13] & 0x0F
    length = data[14] << 8 | data[15]
    size = _V2_HEAD_BYTES + length
    if version != _V2_VERSION or command not in (_LOCAL, _PROXY):
        raise ProxyFault(f"version {version} with command {command}; expected version 2, LOCAL or PROXY")
    if size > V2_BYTES_MAX:
        raise ProxyFault(f"a header of {size} bytes; at most {V2_BYTES_MAX} are taken")
    if command == _PROXY:
        if family not in _ADDRESS_BYTES or kind > 2:
            raise ProxyFault(f"unknown address family {family} or transport {kind}")
        if length < _ADDRESS_BYTES[family]:
            raise ProxyFault(f"{length} bytes are too few for an address of its family")
    if len(data) < size:
        return None
    if command == _LOCAL or family == 0 or kind != _STREAM:
        return Header(size, None)
    if family == 1:
        return Header(size, _name(IPv4Address(data[16:20]), data[24] << 8 | data[25]))
    if family == 2:
        return Header(size, _name(IPv6Address(data[16:32]), data[48] << 8 | data[49]))
    return Header(size, UNIX)


def _name(address: IPv4Address | IPv6Address, port: int) -> str:
    """As `peer_name` has it for those who come directly."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return peer_name((str(address), port), socket.AF_INET6)
        address = address.ipv4_mapped  # from a proxy's socket for both families
    return peer_name((str(address), port), socket.AF_INET)


# ---- whom to believe ---------------------------------------------------------------------------------------------------


def trust_fault(text: str) -> str | None:
    """What is wrong with an entry of `proxy_protocol_from`, or None."""
    if text == UNIX:
        return None
    try:
        ip_network(text)
    except ValueError as error:
        wanted = f'expected an address, a network as "10.0.0.0/8", or "{UNIX}"'
        return f"{wanted}: {error}" if "host bits" in str(error) else f"{wanted}, got {text!r}"
    return None


def is_trusted(trusted: tuple[str, ...], address: object, family: int) -> bool:
    """Must a connection from there (as `accept` says it) begin with a header? trusted: without a `trust_fault`."""
    if not trusted:  # nearly always, and reading an address costs as much as accepting it
        return False
    if family not in (socket.AF_INET, socket.AF_INET6):
        return UNIX in trusted
    if not isinstance(address, tuple):
        return False
    number = ip_address(str(address[0]).partition("%")[0])
    if isinstance(number, IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    return any(number in network for network in _networks(trusted))


@lru_cache(maxsize=64)
def _networks(trusted: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(text) for text in trusted if text != UNIX)


# ---- from the socket -------------------------------------------------------------------------------------------------------


async def receive(connected: socket.socket) -> str | None:
    """The peer that the header names, or None. Takes the header and nothing behind it; the caller's scope bounds the wait. ProxyFault, OSError."""
    taken = b""
    while True:
        await trio.lowlevel.wait_readable(connected)
        try:
            seen = connected.recv(V2_BYTES_MAX - len(taken), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            continue
        if not seen:
            raise ProxyFault("it left in the middle of its PROXY header" if taken else "it left without a PROXY header")
        header = parse(taken + seen)
        taken += connected.recv(len(seen) if header is None else header.size - len(taken))
        if header is not None and len(taken) == header.size:
            return header.peer
