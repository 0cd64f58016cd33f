"""What `broker ctl` does once its options are known: one request over the control socket of a broker, and its answer as a table.

What is in a table may come from strangers, who choose Client Identifiers and topics: nothing that a terminal would obey is printed as it is.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from broker.cli.check import problem_lines
from broker.cli.ctl import Where, in_local_time
from broker.cli.running import DONE, FAILED, WRONG_USAGE, Failure, os_error_line, say, show
from broker.errors import ConfigError
from broker.net.unix import AF_UNIX, HAS_UNIX
from broker.words import printable

SOCKET: Final = "/run/broker/control.sock"
"""Where config/broker.service has room for one."""
TIMEOUT_S: Final = 30.0
"""For any step of the answer: a broker is busy for a second, and not for long."""
ANSWER_BYTES_MAX: Final = 1_073_741_824
"""About 3,000,000 clients."""
PIECE_BYTES: Final = 65_536
NO_BROKER: Final = "what answers there is no control listener of a broker, or of another version, or ended in the middle of its answer"

Row = Mapping[str, Any]


class Reply(NamedTuple):
    """A good answer. path: of the socket. text: JSON; found: what it says."""

    path: str
    text: str
    found: Any


# ---- asking -------------------------------------------------------------------------------------------------------


def place_of(where: Where) -> str:
    """The path of the socket. Failure."""
    if where.socket is not None or where.config is None:
        return where.socket or SOCKET
    from broker.config import Config

    try:
        listeners = [one for one in Config.load(where.config).listeners if one.protocol == "control"]
    except ConfigError as error:
        raise Failure("; ".join(problem_lines(error))) from None
    for one in listeners:
        if one.unix is not None:
            return one.unix
    if not listeners:
        raise Failure(f'{where.config}: has no control listener: [[listeners]] with protocol = "control" and unix = "{SOCKET}"')
    if listeners[0].systemd is not None:
        raise Failure(f"{where.config}: its control socket is one of systemd's; say where that is with --socket PATH")
    raise Failure(f"{where.config}: its control listener is no Unix socket; ask {listeners[0].url} with curl --cert")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("broker", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def ask(where: Where, method: str, target: str, given: Mapping[str, object] | None = None, body: bytes | None = None) -> Reply:
    """given: parameters; None is none. Failure for any answer but a good one."""
    path = place_of(where)
    if not HAS_UNIX:
        raise Failure("this system has no Unix sockets; over TLS a broker can be asked with curl --cert")
    query = urlencode({name: value for name, value in (given or {}).items() if value is not None}, quote_via=quote, safe="/")
    connection = _Connection(path)
    try:
        connection.request(method, f"{target}?{query}" if query else target, body)
        answer = connection.getresponse()
        text = _body(answer).decode()
        found = json.loads(text)
        if answer.status == 200:
            return Reply(path, text, found)
        line = str(found["error"])
    except OSError as error:
        raise Failure(_advice(error, path, where)) from None
    except (http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
        raise Failure(f"{path}: {NO_BROKER}") from None
    finally:
        connection.close()
    raise Failure(line, WRONG_USAGE if answer.status == 400 else FAILED)


def _body(answer: http.client.HTTPResponse) -> bytes:
    """HTTPException for one that is not whole, or has no end. (By pieces: http.client makes room for all that a header announces.)"""
    found = bytearray()
    while piece := answer.read(PIECE_BYTES):
        found += piece
        if len(found) > ANSWER_BYTES_MAX:
            raise http.client.HTTPException
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return bytes(found)


def _advice(error: OSError, path: str, where: Where) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        chosen = "--socket PATH, or -c FILE, says where it is; " if where.socket is None and where.config is None else ""
        return (
            f"{path}: there is no such socket; {chosen}a broker opens one with 'broker serve --control {path}', or protocol = \"control\" in its file"
        )
    if isinstance(error, PermissionError):
        return f"{path}: permission denied; its owner and mode say who may ask (unix_owner, unix_mode): try as the broker's user"
    if isinstance(error, ConnectionRefusedError):
        return f"{path}: nobody listens there; is the broker running?"
    if isinstance(error, TimeoutError):
        return f"{path}: no answer within {TIMEOUT_S:g} s"
    if isinstance(error, ConnectionError):
        return f"{path}: what answers there is no control listener of a broker, or has as many visitors as it takes at a time"
    return f"{path}: {os_error_line(error)}"


# ---- what is shown ------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """text: of a row; None is shown as "-"."""

    title: str
    text: Callable[[Row], object]
    right: bool = False


def _key(name: str) -> Callable[[Row], object]:
    return lambda row: row[name]


def _number(name: str) -> Callable[[Row], object]:
    return lambda row: f"{row[name]:,}"


def _moment(unix_s: float | None) -> str | None:
    return None if unix_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _until(row: Row) -> str | None:
    return None if row["until"] is None else f"{in_local_time(datetime.fromisoformat(row['until'])):%Y-%m-%d %H:%M:%S}"


def _dropped(row: Row) -> str:
    return f"{sum(row['dropped'].values()):,}"


def _left(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:,.0f} s"


def _stays(seconds: float | None) -> str:
    return "stays for ever" if seconds is None else f"stays for {seconds:,.0f} s after its connection" if seconds else "ends with its connection"


TABLES: Final[Mapping[str, Sequence[Column]]] = {
    "clients": (
        Column("CLIENT", _key("client_id")),
        Column("USER", _key("username")),
        Column("ADDRESS", lambda row: row["peer"] or "away"),
        Column("MQTT", _key("version")),
        Column("SINCE", lambda row: _moment(row["connected_at_s"])),
        Column("FILTERS", _number("subscriptions_count"), right=True),
        Column("WAITING", _number("queue_count"), right=True),
        Column("BYTES", _number("queue_bytes"), right=True),
        Column("UNACKED", _number("inflight_count"), right=True),
        Column("DROPPED", _dropped, right=True),
    ),
    "subscriptions": (Column("FILTER", _key("filter")), Column("QOS", _key("qos")), Column("OPTIONS", lambda row: _options(row))),
    "subscribers": (
        Column("CLIENT", _key("client_id")),
        Column("FILTER", _key("filter")),
        Column("QOS", _key("qos")),
        Column("OPTIONS", lambda row: _options(row)),
    ),
    "retained": (
        Column("TOPIC", _key("topic")),
        Column("BYTES", _number("payload_bytes"), right=True),
        Column("QOS", _key("qos")),
        Column("EXPIRES IN", lambda row: _left(row["expires_in_s"]), right=True),
    ),
    "bans": (
        Column("CLIENT", _key("client_id")),
        Column("USER", _key("username")),
        Column("ADDRESS", _key("address")),
        Column("UNTIL", _until),
        Column("BY", lambda row: "config" if row["in_config"] else "request"),
    ),
    "bridges": (
        Column("NAME", _key("name")),
        Column("TO", _key("address")),
        Column("STATE", lambda row: "connected" if row["connected"] else "away"),
        Column("SINCE", lambda row: _moment(row["since_s"])),
        Column("OUT", _number("out_count"), right=True),
        Column("IN", _number("in_count"), right=True),
        Column("DROPPED", _dropped, right=True),
        Column("CAUSE", lambda row: row["cause"] or None),
    ),
}


def _options(row: Row) -> str | None:
    found = [name for name in ("no_local", "retain_as_published") if row[name]]
    return ", ".join([*found, *([] if row["identifier"] is None else [f"identifier {row['identifier']}"])]) or None


def cell(value: object) -> str:
    """In one line, with nothing in it that moves a cursor or changes a color."""
    return "-" if value is None else printable(str(value))


WIDTH_MAX: Final = 80
"""Of a column: what is longer stands out of it, or one Client Identifier of 65,535 letters would fill up the line of each other client."""


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Lines of columns, as wide as they need to be: cut nowhere, since a Client Identifier that was cut is none."""
    from rich.cells import cell_len

    lines = [[column.title for column in columns], *([cell(column.text(row)) for column in columns] for row in rows)]
    widths = [min(WIDTH_MAX, max(cell_len(line[index]) for line in lines)) for index in range(len(columns))]

    def padded(line: Sequence[str]) -> str:
        cells = []
        for text, width, column in zip(line, widths, columns, strict=True):
            space = " " * (width - cell_len(text))
            cells.append(space + text if column.right else text + space)
        return "  ".join(cells).rstrip()

    return "\n".join(map(padded, lines))


# ---- the commands -------------------------------------------------------------------------------------------------


def burden(row: Row) -> int:
    """What waits for a client, or is not acknowledged by it."""
    return int(row["queue_bytes"]) + int(row["inflight_bytes"])


def _tell(where: Where, reply: Reply, in_words: Callable[[Any], str]) -> int:
    """As it is for programs, and for people what `in_words` makes of what it says."""
    if where.json:
        show(reply.text.rstrip("\n"))
        return DONE
    try:
        text = in_words(reply.found)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise Failure(f"{reply.path}: {NO_BROKER}") from None
    show(text)
    return DONE


def look(where: Where, name: str, given: Mapping[str, object], limit: int | None = None, first: Callable[[Row], int] | None = None) -> int:
    """limit: at most so many rows. first: those for which it is largest come first, whatever the order in which the broker has them; programs get
    that order."""
    sorts = first is not None and not where.json
    reply = ask(where, "GET", f"/{name}", {**given, "limit": None if sorts else limit})

    def in_words(found: Any) -> str:
        return table(TABLES[name], (found[name] if first is None else sorted(found[name], key=first, reverse=True))[:limit])

    code = _tell(where, reply, in_words)
    if not where.json and limit is not None and (reply.found.get("more") or len(reply.found[name]) > limit):
        say(f"there are more than {limit:,} (--limit)")
    return code


def look_at_client(where: Where, client_id: str) -> int:
    return _tell(where, ask(where, "GET", _client(client_id)), _client_in_words)


def _client_in_words(found: Row) -> str:
    lines = [
        ("client", found["client_id"]),
        ("user", found["username"]),
        ("address", found["peer"] or "away"),
        ("listener", found["listener"]),
        ("MQTT", found["version"]),
        ("since", _moment(found["connected_at_s"])),
        ("keepalive", None if found["keepalive_s"] is None else f"{found['keepalive_s']:g} s"),
        ("session", _stays(found["session_expiry_s"])),
        ("waiting", f"{found['queue_count']:,} messages, {found['queue_bytes']:,} bytes"),
        ("unacknowledged", f"{found['inflight_count']:,} messages, {found['inflight_bytes']:,} bytes"),
        ("dropped", ", ".join(f"{reason} {count:,}" for reason, count in found["dropped"].items()) or "none"),
    ]
    text = "\n".join(f"{name:<16}{cell(value)}" for name, value in lines)
    return f"{text}\n\n{table(TABLES['subscriptions'], found['subscriptions'])}" if found["subscriptions"] else text


def statistics(where: Where) -> int:
    return _tell(where, ask(where, "GET", "/statistics"), _statistics_in_words)


def _statistics_in_words(found: Row) -> str:
    width = max(map(len, found))
    return "\n".join(f"{cell(name):<{width}}  {_counted(value)}" for name, value in found.items())


def _counted(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def kick(where: Where, client_id: str, *, drop_session: bool) -> int:
    def in_words(found: Row) -> str:
        here = "thrown out" if found["was_connected"] else "was away"
        return f"{cell(client_id)}: {here}; {'it has no session any more' if found['session_dropped'] else 'its session stays'}"

    return _tell(where, ask(where, "DELETE", _client(client_id), {"session": "drop" if drop_session else None}), in_words)


def ban(where: Where, named: Mapping[str, str], until: datetime | None) -> int:
    ends = {} if until is None else {"until": until.isoformat()}
    reply = ask(where, "POST", "/bans", {}, json.dumps({**named, **ends}).encode())
    return _tell(where, reply, lambda found: f"banned; {found['disconnected_count']:,} thrown out")


def unban(where: Where, named: Mapping[str, str]) -> int:
    return _tell(where, ask(where, "DELETE", "/bans", named), lambda _: "no longer banned")


def _client(client_id: str) -> str:
    return f"/clients/{quote(client_id, safe='')}"
