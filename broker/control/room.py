"""What a listener with protocol = "control" serves: who is here and what waits for them, who would be sent what; and to throw out and to ban.

A thin layer over `Broker`, in JSON. Whoever comes in may do all of it: that is for the listener to see to (`net.listener.check`). Lists are made a
step at a time, one thing a line, so that very many stall nobody; what changes something is logged with who did it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote

import msgspec

from broker.auth.bans import Ban
from broker.errors import InvalidTopic, shown
from broker.hub import Broker
from broker.inspection import STEP_COUNT, ClientInfo, SubscriptionInfo
from broker.messages import Message
from broker.net.http import Answer, Reception, Request
from broker.net.server import Server
from broker.net.visitors import receive_visitors

NAMES_BYTES_MAX: Final = 2 * 65_535
"""Of a Client Identifier and a user name, at their longest: who has such ones can be thrown out and banned too."""
HEAD_BYTES_MAX: Final = 3 * NAMES_BYTES_MAX + 8_192
"""Percent-encoded."""
BODY_BYTES_MAX: Final = 6 * NAMES_BYTES_MAX + 8_192
"""As JSON's "\\u0001"."""
LINES_BYTES: Final = 262_144
"""Of an answer, made at a time; a line more is."""
LINE_LENGTH_MAX: Final = 1_000
"""Of an error: it may repeat what was asked."""
_JSON: Final = "application/json"
_PARTS_OF_A_BAN: Final = ("client_id", "username", "address")

Parameters: TypeAlias = Mapping[str, str]

logger = logging.getLogger("broker")


class RetainedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """expires_in_s: whole seconds; None: never."""

    topic: str
    payload_bytes: int
    qos: int
    expires_in_s: int | None


class Refused(Exception):
    """(status, line)."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Verb(NamedTuple):
    """run: (what the path names, parameters, request). takes: names of parameters."""

    run: Callable[[str, Parameters, Request], Answer]
    takes: tuple[str, ...] = ()


class Room:
    """All that the control listeners of one broker serve. `run` is a chore of its server."""

    def __init__(self, hub: Broker) -> None:
        self._hub = hub
        self._verbs: dict[str, dict[str, Verb]] = {
            "/clients": {"GET": Verb(self._clients, ("connected", "waiting", "username", "prefix", "limit"))},
            "/clients/ID": {"GET": Verb(self._client), "DELETE": Verb(self._throw_out, ("session",))},
            "/subscribers": {"GET": Verb(self._subscribers, ("topic", "limit"))},
            "/retained": {"GET": Verb(self._retained, ("filter", "limit"))},
            "/bans": {"GET": Verb(self._bans, ("limit",)), "POST": Verb(self._ban), "DELETE": Verb(self._unban, _PARTS_OF_A_BAN)},
            "/bridges": {"GET": Verb(self._bridges)},
            "/statistics": {"GET": Verb(self._statistics)},
        }

    async def run(self, server: Server) -> None:
        await receive_visitors(server, "control", Reception(self._answer, fault, BODY_BYTES_MAX, HEAD_BYTES_MAX))

    async def _answer(self, request: Request) -> Answer:
        try:
            return self._answered(request)
        except Refused as refused:
            return fault(refused.status, str(refused))
        except InvalidTopic as error:
            return fault(400, str(error))

    def _answered(self, request: Request) -> Answer:
        if request.from_browser:
            raise Refused(403, "this is not for web pages")
        place, name = _place(request.path)
        verbs = self._verbs.get(place)
        if verbs is None:
            raise Refused(404, f"there are {', '.join(self._verbs)} here")
        verb = verbs.get("GET" if request.method == "HEAD" else request.method)
        if verb is None:
            return fault(405, f"nothing but {', '.join(verbs)} is served here", {"Allow": ", ".join(verbs)})
        return verb.run(name, _parameters(request.query, verb.takes), request)

    # ---- to look ----

    def _clients(self, _: str, given: Parameters, request: Request) -> Answer:
        connected = _one_of("connected", given, {"true": True, "false": False})
        waiting = _one_of("waiting", given, {"true": True, "false": False})
        username, prefix = given.get("username"), given.get("prefix", "")
        chosen = (
            [
                info
                for info in some
                if info.client_id.startswith(prefix)
                and (username is None or info.username == username)
                and (connected is None or (info.peer is not None) is connected)
                and (waiting is None or (info.queue_count + info.inflight_count > 0) is waiting)
            ]
            for some in self._hub.client_slices()
        )
        return _listed("clients", chosen, given)

    def _client(self, client_id: str, given: Parameters, request: Request) -> Answer:
        info = self._hub.client(client_id)
        if info is None:
            raise _no_client(client_id)
        return Answer(200, _pieces_of_one(info, self._hub.subscriptions(client_id)), _JSON)

    def _subscribers(self, _: str, given: Parameters, request: Request) -> Answer:
        if "topic" not in given:
            raise Refused(400, "say which: ?topic=a/b")
        return _listed("subscribers", self._hub.subscriber_slices(given["topic"]), given)

    def _retained(self, _: str, given: Parameters, request: Request) -> Answer:
        slices = self._hub.retained_slices(given.get("filter", "#"))
        return _listed("retained", (list(map(_retained_info, some)) for some in slices), given)

    def _bans(self, _: str, given: Parameters, request: Request) -> Answer:
        return _listed("bans", _sliced(self._hub.bans()), given)

    def _bridges(self, _: str, given: Parameters, request: Request) -> Answer:
        return _listed("bridges", _sliced(self._hub.bridges), given)

    def _statistics(self, _: str, given: Parameters, request: Request) -> Answer:
        return _told(self._hub.statistics())

    # ---- to do ----

    def _throw_out(self, client_id: str, given: Parameters, request: Request) -> Answer:
        drop = _one_of("session", given, {"drop": True, "keep": False}) or False
        info = self._hub.client(client_id)
        if info is None:
            raise _no_client(client_id)
        self._hub.disconnect(client_id, drop_session=drop)
        if drop or info.peer is not None:
            logger.info("control: %s was thrown out%s by %s", shown(client_id), ", and its session dropped," if drop else "", request.peer)
        return _told({"was_connected": info.peer is not None, "session_dropped": self._hub.client(client_id) is None})

    def _ban(self, _: str, given: Parameters, request: Request) -> Answer:
        try:
            ban = msgspec.json.decode(request.body, type=Ban)
        except ValueError as error:  # msgspec's are such, and what is not UTF-8
            raise Refused(400, f'expected {{"client_id": ..., "username": ..., "address": ..., "until": ...}}: {error}') from None
        try:
            count = self._hub.ban(client_id=ban.client_id, username=ban.username, address=ban.address, until=ban.until)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        logger.info("control: %s was banned by %s, and %d thrown out", _described(msgspec.structs.asdict(ban)), request.peer, count)
        return _told({"disconnected_count": count})

    def _unban(self, _: str, given: Parameters, request: Request) -> Answer:
        if not given:
            raise Refused(400, "say whose, exactly as the ban does: ?client_id=...&username=...&address=...")
        named = {name: given.get(name) for name in _PARTS_OF_A_BAN}
        if not self._hub.unban(**named):
            if any({name: getattr(ban, name) for name in named} == named for ban in self._hub.bans()):
                raise Refused(409, "this ban is the config's: take it out of [[banned]] there")
            raise Refused(404, f"there is no ban of exactly {_described(named)}")
        logger.info("control: the ban of %s was taken back by %s", _described(named), request.peer)
        return _told({})


# ---- what was asked -----------------------------------------------------------------------------------------------------------


def _place(path: str) -> tuple[str, str]:
    """("/clients/ID", the ID) or (path, "")."""
    head, found, name = path.partition("/clients/")
    if found and not head and "/" not in name:
        return "/clients/ID", _decoded(name)
    return path, ""


def _parameters(query: str, names: Sequence[str]) -> dict[str, str]:
    """A "+" stays what it is: wildcards are more common here than forms."""
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in names:
            raise Refused(400, f"unknown parameter {name!r}; there " + (f"are {', '.join(names)}" if names else "are none here"))
        if name in found:
            raise Refused(400, f"{name} is there twice")
        found[name] = _decoded(value)
    return found


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Refused(400, f"{text!r} is not UTF-8, percent-encoded") from None


def _one_of(name: str, given: Parameters, values: Mapping[str, bool]) -> bool | None:
    if name not in given:
        return None
    if given[name] not in values:
        raise Refused(400, f"{name}: expected {' or '.join(values)}, got {given[name]!r}")
    return values[given[name]]


def _no_client(client_id: str) -> Refused:
    return Refused(404, f"there is no client {client_id!r}, and no session of it")


# ---- what is told -------------------------------------------------------------------------------------------------------------


def fault(status: int, line: str, headers: Mapping[str, str] | None = None) -> Answer:
    if len(line) > LINE_LENGTH_MAX:
        line = f"{line[:LINE_LENGTH_MAX]}..."
    return Answer(status, msgspec.json.encode({"error": line.replace("\n", " ")}) + b"\n", _JSON, headers or {})


def _told(value: Mapping[str, Any]) -> Answer:
    return Answer(200, msgspec.json.encode(value) + b"\n", _JSON)


def _listed(name: str, slices: Iterable[Sequence[msgspec.Struct]], given: Parameters) -> Answer:
    """One thing a line, and at the end whether there would be more of them, if a limit was given."""
    limit = math.inf
    if "limit" in given:
        if re.fullmatch(r"0*[1-9][0-9]{,18}", given["limit"]) is None:
            raise Refused(400, f"limit: expected a number from 1 on, got {given['limit']!r}")
        limit = int(given["limit"])
    return Answer(200, _pieces(name, slices, limit), _JSON)


def _pieces(name: str, slices: Iterable[Sequence[msgspec.Struct]], limit: float) -> Iterator[bytes]:
    count = 0
    more = False
    separator = b"\n"
    yield f'{{"{name}":['.encode()
    for some in slices:
        more = count + len(some) > limit
        if more:
            some = some[: int(limit) - count]
        for lines in _lines(some):
            yield separator + lines if lines else b""
            separator = b",\n" if lines else separator
        count += len(some)
        if more:
            break
    yield b'%b],"more":%b}\n' % (b"\n" if count else b"", b"true" if more else b"false")


def _pieces_of_one(info: ClientInfo, subscriptions: Sequence[SubscriptionInfo]) -> Iterator[bytes]:
    """Its fields, and its subscriptions, of which there may be ten thousand."""
    separator = msgspec.json.encode(info)[:-1] + b',"subscriptions":[\n'
    for some in _sliced(subscriptions):
        for lines in _lines(some):
            yield separator + lines if lines else b""
            separator = b",\n" if lines else separator
    yield b"\n]}\n" if subscriptions else separator + b"]}\n"


def _lines(some: Sequence[msgspec.Struct]) -> Iterator[bytes]:
    """One thing a line, as many at a time as make LINES_BYTES; none at last, maybe. (256 clients may have 32 MB of names, in JSON six times that.)"""
    encode = msgspec.json.Encoder().encode
    lines: list[bytes] = []
    size = 0
    for one in some:
        line = encode(one)
        lines.append(line)
        size += len(line)
        if size >= LINES_BYTES:
            yield b",\n".join(lines)
            lines, size = [], 0
    yield b",\n".join(lines)


def _sliced(whole: Sequence[msgspec.Struct]) -> Iterator[Sequence[msgspec.Struct]]:
    return (whole[start : start + STEP_COUNT] for start in range(0, len(whole), STEP_COUNT))


def _retained_info(message: Message) -> RetainedInfo:
    return RetainedInfo(
        topic=message.topic, payload_bytes=len(message.payload), qos=message.qos, expires_in_s=message.properties.message_expiry_interval
    )


def _described(parts: Mapping[str, Any]) -> str:
    """Of a ban, for people."""
    return ", ".join(f"{name} {shown(str(value))}" for name, value in parts.items() if value is not None)
