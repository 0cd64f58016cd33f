"""What is said of a bridge, by a program or the config file; and what is wrong with it in itself."""

from __future__ import annotations

import math
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, Literal

from msgspec import Struct

from broker.auth.scram import METHOD as SCRAM
from broker.bridge.mapping import overlap
from broker.client.connect import Attachable, url_keywords
from broker.errors import ConfigError
from broker.messages import FOUR_BYTE_MAX, Version
from broker.net.dial import Target, parse_url
from broker.wire.topics import topic_filter_fault, topic_name_fault
from broker.words import strerror

Direction = Literal["out", "in", "both"]
Fault = tuple[str, str]
"""The key, what was expected."""

LASTING_S: Final = math.inf
NAME_LENGTH_MAX: Final = 100
PASSWORD_BYTES_MAX: Final = 65_535
ANSWER_TIMEOUT_S: Final = 60.0


class BridgeTopic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bridge carries, and where to: Mosquitto's `topic filter direction qos local_prefix remote_prefix`.

    filter: a Topic Filter without the prefixes; "" is the prefixes alone, one topic. direction: "out" carries what is published here to the other
    broker, "in" the other way, "both" does both (MQTT 5.0). qos: at the most. local_prefix, remote_prefix: what stands before it here, and there:
    a message's topic loses the one and gets the other. The first entry of a direction that fits a topic counts.
    """

    filter: str
    direction: Direction = "out"
    qos: int = 1
    local_prefix: str = ""
    remote_prefix: str = ""

    @property
    def local_filter(self) -> str:
        """As it is subscribed to here."""
        return self.local_prefix + self.filter

    @property
    def remote_filter(self) -> str:
        """As it is subscribed to there."""
        return self.remote_prefix + self.filter

    @property
    def goes_out(self) -> bool:
        """Is it carried from here to there?"""
        return self.direction != "in"

    @property
    def comes_in(self) -> bool:
        """Is it carried from there to here?"""
        return self.direction != "out"


class BridgeTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a bridge trusts, and what it shows: files, PEM, read when it begins.

    ca: who may have signed the other broker's certificate, a file or a directory (`openssl rehash`); None: whom the system trusts. certificate, key:
    this client's own, without a passphrase; key None: it stands in the certificate's file. check_hostname: must the other broker's certificate be
    of the host in the URL?
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    check_hostname: bool = True


class Bridge(Struct, frozen=True, kw_only=True):
    """A bridge to another broker: open_broker(bridges=[Bridge(name="cloud", url="mqtts://mqtt.example", topics=[BridgeTopic(filter="sensors/#")])]).

    name: for logs, `$SYS/broker/connection/<name>/state` and the Session here, under local_client_id. url: as `connect` takes it, another Broker of
    this Trio run included. topics: at least one. client_id: at the other broker, "<host name>-<name>" by default, and nobody else's there.
    username, password_file: who it is; the first line of the file is the password, read anew for each connection. tls: `BridgeTls`, or a context
    of the program's own. version: "5.0", or "3.1.1" for a broker that has nothing newer: without No Local, so nothing can be carried both ways.
    keepalive_s: seconds between two signs of life. session_expiry_s: how long the other broker shall keep the Session while this one is away
    (5.0); by default for ever. fallback_urls: where to go, in this order, while url is not there; the bridge goes back to url when it is. All of
    them get what the bridge carries, user, password and tls included, and each keeps a Session of its own. answer_timeout_s: how long the other
    broker may take for SUBACK and to acknowledge a message, before the connection is made anew. notification_topic: where the other broker
    retains 1 while the bridge is connected, and 0 (by its Will) while it is not. outgoing_retain: False: what goes out is not retained there.
    local_address: of this machine, to dial from. auth_method: how it shows who it is instead of user name and password in CONNECT (5.0):
    "SCRAM-SHA-256" proves the password of the file; any other Authentication Method sends the file's first line as a token.
    """

    name: str
    url: str | Attachable
    topics: Sequence[BridgeTopic]
    client_id: str | None = None
    username: str | None = None
    password_file: str | None = None
    tls: BridgeTls | ssl.SSLContext | None = None
    version: Version = "5.0"
    keepalive_s: int = 60
    session_expiry_s: float = LASTING_S
    fallback_urls: Sequence[str | Attachable] = ()
    answer_timeout_s: float = ANSWER_TIMEOUT_S
    notification_topic: str | None = None
    outgoing_retain: bool = True
    local_address: str | None = None
    auth_method: str | None = None

    def __repr__(self) -> str:
        return f"Bridge(name={self.name!r}, url={self.address!r})"

    @property
    def urls(self) -> tuple[str | Attachable, ...]:
        """url and those to go to while it is not there."""
        return (self.url, *self.fallback_urls)

    @property
    def address(self) -> str:
        """The URL, for people."""
        return address_of(self.url)

    @property
    def ends(self) -> tuple[str | Attachable, ...]:
        """What tells one other broker from another, as far as that can be seen here."""
        return tuple(address_of(url) if isinstance(url, str) else url for url in self.urls)

    @property
    def remote_client_id(self) -> str:
        """Under which the other broker knows it."""
        return self.client_id or f"{socket.gethostname()}-{self.name}"

    @property
    def local_client_id(self) -> str:
        """Under which this one does. Nobody else may have it."""
        return f"bridge:{self.name}"

    @property
    def state_topic(self) -> str:
        """Mosquitto's."""
        return f"$SYS/broker/connection/{self.name}/state"


class BridgeInfo(Struct, frozen=True, kw_only=True):
    """A bridge as it is now. name, address: whose, and where to. connected; since_s: from when on (Unix time; None: it has never been connected).
    cause: why it is not, in words. timeouts_count: how many connections were given up because an answer was late. out_count, in_count: messages
    carried and acknowledged since the start. dropped: how many were not carried, by reason. What waits for it is in `Broker.clients()`, under
    client_id."""

    name: str
    address: str
    client_id: str
    connected: bool
    since_s: float | None
    cause: str
    out_count: int
    in_count: int
    timeouts_count: int
    dropped: Mapping[str, int]


def target_of(url: str | Attachable) -> Target | None:
    """Where that is; None inside this program. ValueError for a URL that is none."""
    return parse_url(url) if isinstance(url, str) else None


def address_of(url: str | Attachable) -> str:
    """For people: without what it says of user and password."""
    try:
        target = target_of(url)
    except ValueError:
        return "..."
    return "in-process" if target is None else target.address


# ---- what is wrong ------------------------------------------------------------------------------------------------------


def check_bridges(bridges: Sequence[Bridge]) -> None:
    """ConfigError names every mistake."""
    for bridge in bridges:
        if not isinstance(bridge, Bridge):
            raise TypeError(f"a bridge is a Bridge, not {type(bridge).__name__}")
    faults = list(bridge_faults([(f"bridges[{index}]", bridge) for index, bridge in enumerate(bridges)]))
    if faults:
        raise ConfigError(faults)


def bridge_faults(bridges: Sequence[tuple[str, Bridge]]) -> Iterator[Fault]:
    """(key path, what was expected) of every mistake. bridges: each with its own key path."""
    names: dict[str, str] = {}
    ends: dict[tuple[str | Attachable, str], str] = {}
    for place, bridge in bridges:
        for key, text in _faults(bridge):
            yield f"{place}.{key}", text
        if bridge.name in names:
            yield f"{place}.name", f'"{bridge.name}" is the name of {names[bridge.name]} too'
        names.setdefault(bridge.name, place)
        for one in dict.fromkeys(bridge.ends):
            end = one, bridge.remote_client_id
            if end in ends:
                where = one if isinstance(one, str) else "the same broker"
                yield f"{place}.client_id", f"{ends[end]} has the same one at {where}, and they would throw each other out"
            ends.setdefault(end, place)
    yield from _rings(bridges)


def _faults(bridge: Bridge) -> Iterator[Fault]:
    if not bridge.name or len(bridge.name) > NAME_LENGTH_MAX or any(letter in "/+#\0" for letter in bridge.name):
        yield "name", f"expected 1 to {NAME_LENGTH_MAX} characters without / + #, which a topic is made of, got {bridge.name[:200]!r}"
    targets: list[Target | None] = []
    for key, url in (("url", bridge.url), *((f"fallback_urls[{index}]", url) for index, url in enumerate(bridge.fallback_urls))):
        try:
            targets.append(target_of(url))
            if targets[-1] is not None:
                url_keywords(targets[-1])
        except ValueError as error:
            yield key, str(error)
    if len(set(bridge.ends)) < len(bridge.ends):
        yield "fallback_urls", "expected other brokers than url, each once"
    if bridge.client_id == "":
        yield "client_id", "expected a Client Identifier, got \"\"; without the key it is made of the host's name and the bridge's"
    if bridge.version not in ("5.0", "3.1.1"):
        yield "version", f"expected 5.0 or 3.1.1, got {bridge.version!r}"
    if not 0 <= bridge.keepalive_s <= 65_535:
        yield "keepalive_s", f"expected 0 to 65,535, got {bridge.keepalive_s:,}"
    if not (0 <= bridge.session_expiry_s <= FOUR_BYTE_MAX or bridge.session_expiry_s == math.inf):
        yield "session_expiry_s", f"expected 0 to {FOUR_BYTE_MAX:,}, or inf, got {bridge.session_expiry_s:g}"
    if not 1 <= bridge.answer_timeout_s < math.inf:
        yield "answer_timeout_s", f"expected 1 or more, and an end, got {bridge.answer_timeout_s}"
    if bridge.notification_topic is not None:
        fault = topic_name_fault(bridge.notification_topic)
        if fault is not None:
            yield "notification_topic", fault
    if bridge.local_address is not None and not _is_address(bridge.local_address):
        yield "local_address", f"expected an address of this machine, such as 192.0.2.1, got {bridge.local_address!r}"
    if bridge.password_file is not None:
        fault = password_fault(bridge.password_file)
        if fault is not None:
            yield "password_file", fault
        if bridge.username is None and any(one is None or one.username is None for one in targets) and bridge.version != "5.0":
            yield "username", "is missing; MQTT 3.1.1 has no password without one"
    yield from _auth_faults(bridge)
    yield from _tls_faults(bridge, targets)
    if not bridge.topics:
        yield "topics", "expected at least one"
    yield from _topic_faults(bridge)


def _auth_faults(bridge: Bridge) -> Iterator[Fault]:
    if bridge.auth_method is None:
        return
    if not bridge.auth_method:
        yield "auth_method", 'expected an Authentication Method, such as "SCRAM-SHA-256", got ""'
    if bridge.version != "5.0":
        yield "auth_method", 'needs version = "5.0"'
    if bridge.password_file is None:
        yield "password_file", "is missing; auth_method shows what is in it"
    if bridge.auth_method == SCRAM and not bridge.username:
        yield "username", f"is missing; {SCRAM} proves who that is"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _tls_faults(bridge: Bridge, targets: Sequence[Target | None]) -> Iterator[Fault]:
    if bridge.tls is None:
        return
    plain = next((target for target in targets if target is not None and target.scheme not in ("mqtts", "wss")), None)
    if plain is not None:
        yield "tls", f"goes with mqtts:// and wss://, and {'the url says' if plain is targets[0] else 'one of fallback_urls says'} {plain.scheme}://"
    elif isinstance(bridge.tls, BridgeTls):
        try:
            client_context(bridge.tls)
        except ConfigError as error:
            yield from ((f"tls.{key}", text) for key, text in error.problems)


def _topic_faults(bridge: Bridge) -> Iterator[Fault]:
    for index, topic in enumerate(bridge.topics):
        place = f"topics[{index}]"
        if topic.qos not in (0, 1, 2):
            yield f"{place}.qos", f"expected 0, 1 or 2, got {topic.qos}"
        wild = False
        for key, prefix in (("local_prefix", topic.local_prefix), ("remote_prefix", topic.remote_prefix)):
            if "+" in prefix or "#" in prefix:
                wild = True
                yield f"{place}.{key}", f"must not contain the wildcards + and #, got {prefix!r}"
        if wild:
            continue
        for filter in dict.fromkeys((topic.local_filter, topic.remote_filter)):
            fault = "a bridge's filter is no shared subscription" if filter.startswith("$share/") else topic_filter_fault(filter)
            if fault is not None:
                yield f"{place}.filter", fault if filter == topic.filter else f"{fault} (with its prefix: {filter!r})"
                break
        if topic.direction == "both" and bridge.version == "3.1.1":
            yield f"{place}.direction", '"both" needs version = "5.0": in 3.1.1 a broker sends back what it was sent'
    yield from _echoes(bridge)


def _echoes(bridge: Bridge) -> Iterator[Fault]:
    """3.1.1 knows no No Local: what goes out and fits what is to come in comes back."""
    if bridge.version != "3.1.1":
        return
    for index, topic in enumerate(bridge.topics):
        for other in bridge.topics:
            if topic.direction == "in" and other.direction == "out" and overlap(topic.remote_filter, other.remote_filter):
                yield (
                    f"topics[{index}].filter",
                    f"{topic.remote_filter!r} comes in, and {other.remote_filter!r} goes out there: "
                    'without No Local, which version = "5.0" has, what is sent would come back',
                )


def _rings(bridges: Sequence[tuple[str, Bridge]]) -> Iterator[Fault]:
    """Two bridges to one broker are two clients, and No Local is of each: what one takes out the other must not bring in."""
    for place, bridge in bridges:
        for other_place, other in bridges:
            if place == other_place or not set(bridge.ends).intersection(other.ends):
                continue
            for index, topic in enumerate(bridge.topics):
                if any(comes_back(topic, back) for back in other.topics):
                    yield f"{place}.topics[{index}].filter", f"goes out here and comes back in by {other_place}: messages would go round for ever"


def comes_back(out: BridgeTopic, back: BridgeTopic) -> bool:
    """Does what the one carries out fit what the other brings in, at both brokers?"""
    return (
        out.goes_out
        and back.comes_in
        and overlap(out.remote_filter, back.remote_filter)
        and overlap(out.local_filter, back.local_filter)
    )  # fmt: skip


def password_fault(path: str) -> str | None:
    """Why the first line of that file is no password; None if it is."""
    try:
        read_password(path)
    except OSError as error:
        return f"{path} cannot be read: {strerror(error)}"
    except ValueError as error:
        return str(error)
    return None


def read_password(path: str) -> bytes:
    """The first line. OSError; ValueError for one that is none."""
    with open(path, "rb") as file:
        line = file.readline(PASSWORD_BYTES_MAX + 2).rstrip(b"\r\n")
    if not line or len(line) > PASSWORD_BYTES_MAX:
        raise ValueError(f"expected a password in the first line of {path}")
    return line


def client_context(files: BridgeTls) -> ssl.SSLContext:
    """ConfigError names every mistake. Trusts alike on every Python (docs/decisions/0037-what-certificates-must-have.md)."""
    problems: list[Fault] = []
    context = ssl.create_default_context() if files.ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    context.check_hostname = files.check_hostname
    if files.ca is not None:
        directory = os.path.isdir(files.ca)
        try:
            context.load_verify_locations(capath=files.ca if directory else None, cafile=None if directory else files.ca)
        except ssl.SSLError:
            problems.append(("ca", f"expected certificates (PEM) in {files.ca}"))
        except OSError as error:
            problems.append(("ca", f"{files.ca} cannot be read: {strerror(error)}"))
    if files.certificate is not None:
        problems += _load_own(context, files.certificate, files.key)
    elif files.key is not None:
        problems.append(("certificate", "is missing; a key alone shows nothing"))
    if problems:
        raise ConfigError(problems, "tls")
    return context


def _load_own(context: ssl.SSLContext, certificate: str, key: str | None) -> list[Fault]:
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            if path is not None:
                with open(path, "rb"):
                    pass
        except OSError as error:
            return [(name, f"{path} cannot be read: {strerror(error)}")]
    try:
        # A passphrase would be asked for at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError:
        return [("certificate", f"expected a certificate and its key (PEM), without a passphrase, in {certificate}{' and ' + key if key else ''}")]
    return []
