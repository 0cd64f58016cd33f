"""The options of `pub`, `sub` and `rr`: Mosquitto's letters and names, each defined once, and what they come to together.

Three things click does not do by itself live here: -D takes three words or four, options are shown in sections, and an option that we do
not have says so instead of being unknown. Nothing here imports trio, so that --help stays quick.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import click

from broker.cli import properties
from broker.wire.packets import Properties
from broker.wire.topics import topic_filter_fault, topic_name_fault

Function = TypeVar("Function", bound=Callable[..., Any])

WHERE: Final = "Where"
WHO: Final = "Who"
WHAT: Final = "What"
SHOWN: Final = "What is printed"
MQTT5: Final = "MQTT 5.0 properties"
WILL: Final = "A Will, published by the broker if this program vanishes"
TLS: Final = "TLS"
ABOUT: Final = "About the run"
_SECTIONS: Final = (WHAT, SHOWN, WHERE, WHO, MQTT5, WILL, TLS, ABOUT)


class SectionOption(click.Option):
    """An option that stands under a heading of the help page."""

    def __init__(self, *args: Any, section: str = ABOUT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(*names: str, section: str, **settings: Any) -> Callable[[Function], Function]:
    return click.option(*names, cls=SectionOption, section=section, **settings)


class ToolCommand(click.Command):
    """A command in which -h is the host, -D takes three or four words, and the options stand in sections."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, gather_properties(args, self._takes_value(ctx)))

    def _takes_value(self, ctx: click.Context) -> dict[str, bool]:
        """{option: does a value follow it?}"""
        return {
            name: not (parameter.is_flag or parameter.count)
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            for name in parameter.opts
        }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows.setdefault(getattr(parameter, "section", ABOUT), []).append(record)
        for section in _SECTIONS:
            if section in rows:
                with formatter.section(section):
                    formatter.write_dl(rows[section])


PROPERTY_SEPARATOR: Final = "\0"  # cannot stand in a word of a command line


def gather_properties(words: list[str], takes_value: Mapping[str, bool]) -> list[str]:
    """The command line with every -D and --property made one word, `--property=connect\\0receive-maximum\\0…`, for click has no option of variable length."""
    gathered: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            return [*gathered, word, *words[position:]]
        found = _property_words(word, takes_value)
        if found is not None:
            before, first = found
            taken = [] if first is None else [first]
            while len(taken) < properties.words_wanted(taken) and position < len(words):
                taken.append(words[position])
                position += 1
            gathered += [*before, "--property=" + PROPERTY_SEPARATOR.join(taken)]
            continue
        gathered.append(word)
        if _wants_next(word, takes_value) and position < len(words):
            gathered.append(words[position])
            position += 1
    return gathered


def _property_words(word: str, takes_value: Mapping[str, bool]) -> tuple[list[str], str | None] | None:
    """(flags that stood before it, the first word if it was joined) if this word is -D, -vD, -Dconnect, --property or --property=connect."""
    if word == "--property":
        return [], None
    if word.startswith("--property="):
        return [], word.partition("=")[2]
    if word.startswith("-") and not word.startswith("--"):
        for place, letter in enumerate(word[1:], 1):
            if letter == "D":
                return (["-" + word[1:place]] if place > 1 else []), word[place + 1 :] or None
            if takes_value.get("-" + letter, True):
                return None
    return None


def _wants_next(word: str, takes_value: Mapping[str, bool]) -> bool:
    """Is the next word this one's value?"""
    if word.startswith("--"):
        return "=" not in word and takes_value.get(word, False)
    if word.startswith("-") and len(word) > 1:
        for place, letter in enumerate(word[1:], 1):
            if takes_value.get("-" + letter, False):
                return place == len(word) - 1
    return False


# ---- types --------------------------------------------------------------------------------------------------------


class TopicName(click.ParamType):
    name = "topic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        fault = "it is not UTF-8" if not is_text(str(value)) else topic_name_fault(str(value))
        if fault is not None:
            self.fail(f"{printable(value)!r} is no Topic Name: {fault}", param, ctx)
        return str(value)


class TopicFilter(click.ParamType):
    name = "filter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        fault = "it is not UTF-8" if not is_text(str(value)) else topic_filter_fault(str(value))
        if fault is not None:
            self.fail(f"{printable(value)!r} is no Topic Filter: {fault}", param, ctx)
        return str(value)


class Text(click.ParamType):
    """UTF-8 for a field of a packet; what the standard forbids in it is found here and not by an encoder."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_text(str(value)) or len(str(value).encode()) > 65_535:
            self.fail("text in UTF-8 of at most 65,535 bytes expected", param, ctx)
        return str(value)


class Version(click.ParamType):
    name = "version"
    _KNOWN: Final = {
        "5": "5.0", "mqttv5": "5.0", "5.0": "5.0",
        "311": "3.1.1", "mqttv311": "3.1.1", "3.1.1": "3.1.1",
        "31": "3.1", "mqttv31": "3.1", "3.1": "3.1",
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        version = self._KNOWN.get(str(value).lower())
        if version is None:
            self.fail(f"5, 311, 31, mqttv5, mqttv311 or mqttv31 expected, not {value!r}", param, ctx)
        return version


class Whole(click.ParamType):
    """A whole number in a range. (click's IntRange writes the range into the help page as well.)"""

    name = "number"

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.minimum - 1
        if not self.minimum <= number <= self.maximum:
            self.fail(f"a whole number from {self.minimum} to {self.maximum} expected, not {printable(value)!r}", param, ctx)
        return number


PORT: Final = Whole(1, 65_535)
QOS: Final = Whole(0, 2)
COUNT: Final = Whole(1, 2**63 - 1)


class Expiry(click.ParamType):
    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if value in ("-1", "∞", str(0xFFFF_FFFF), "inf"):
            return math.inf
        if not str(value).isdecimal() or int(value) > 0xFFFF_FFFF:
            self.fail(f"0 to 4294967294 seconds, or -1 or ∞ for a session that does not expire, expected, not {value!r}", param, ctx)
        return float(value)


class Seconds(click.ParamType):
    """A duration of more than `minimum` seconds, and finite."""

    name = "seconds"

    def __init__(self, minimum: float = 0, inclusive: bool = False) -> None:
        self.minimum = minimum
        self.inclusive = inclusive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not (self.minimum < seconds < math.inf or (self.inclusive and seconds == self.minimum)):
            self.fail(f"seconds, {'at least' if self.inclusive else 'more than'} {self.minimum:g}, expected, not {value!r}", param, ctx)
        return seconds


class Percent(click.ParamType):
    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            percent = float(value)
        except ValueError:
            percent = math.nan
        if not 0.1 <= percent <= 100:
            self.fail(f"a number from 0.1 to 100 expected, not {printable(value)!r}", param, ctx)
        return percent


def is_text(value: str) -> bool:
    """False for what came from a command line that was not UTF-8 (such bytes arrive as lone surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


# ---- what we do not have ------------------------------------------------------------------------------------------


def _refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        name = param.opts[0]
        raise click.UsageError(f"{name} is not available here{_INSTEAD.get(name, '')}", ctx=ctx)


_INSTEAD: Final = {
    "--psk": ": TLS with certificates is (--cafile, --cert, --key)",
    "--psk-identity": ": TLS with certificates is (--cafile, --cert, --key)",
    "--proxy": ": a SOCKS proxy is not spoken",
    "--tls-engine": ": keys are read from PEM files (--key)",
    "--tls-engine-kpass-sha1": ": keys are read from PEM files (--key)",
    "--ws": ": WebSocket is not spoken yet",
}


def _unavailable(function: Function) -> Function:
    for name in ("--psk", "--psk-identity", "--proxy", "--tls-engine", "--tls-engine-kpass-sha1"):
        function = click.option(name, hidden=True, expose_value=False, callback=_refuse)(function)
    return click.option("--ws", hidden=True, is_flag=True, expose_value=False, callback=_refuse)(function)


# ---- the options that all three share -----------------------------------------------------------------------------

_PATH: Final = click.Path()

_SHARED: Final[tuple[Callable[[Any], Any], ...]] = (
    option("-h", "--host", section=WHERE, metavar="HOST", help="The broker's host.  [default: localhost]"),
    option("-p", "--port", section=WHERE, type=PORT, metavar="PORT", help="Its port.  [default: 1883; 8883 with TLS]"),
    option("--unix", section=WHERE, metavar="PATH", help="A Unix socket instead of host and port."),
    option(
        "-L", "--url", section=WHERE, metavar="URL",
        help="Everything at once: mqtt(s)://[user[:password]@]host[:port]/topic. %-escapes are decoded.",
    ),
    option("-A", "bind_address", section=WHERE, metavar="ADDRESS", help="Connect from this local address."),
    option("--nodelay", section=WHERE, is_flag=True, help="Send small packets at once (TCP_NODELAY)."),
    option("-i", "--id", "client_id", section=WHO, type=Text(), metavar="ID", help="The client id.  [default: the broker chooses; made up before 5.0]"),
    option("-I", "--id-prefix", section=WHO, type=Text(), metavar="PREFIX", help="The client id is this and the process id."),
    option("-u", "--username", section=WHO, type=Text(), metavar="NAME", help="The user name."),
    option("-P", "--pw", "password", section=WHO, metavar="PASSWORD", help="The password."),
    option("-V", "--protocol-version", "version", section=WHO, type=Version(), metavar="VERSION", help="5, 311 or 31.  [default: 5]"),
    option("-k", "--keepalive", section=WHO, type=Whole(0, 65_535), default=60, metavar="SECONDS", help="Ping after so long a silence.  [default: 60]"),
    option("-c", "--disable-clean-session", "keep_session", section=WHO, is_flag=True, help="Keep the session when leaving, and take up the old one. Wants -i."),
    option("-x", "--session-expiry-interval", "session_expiry", section=WHO, type=Expiry(), metavar="SECONDS",
           help="How long the session outlives the connection; -1 or ∞ for ever.  [default: 0; with -c ∞]"),
    option("-M", "--max-inflight", section=WHO, type=Whole(1, 65_535), metavar="COUNT", help="Messages of QoS 1 and 2 under way at once.  [default: 20]"),
    option("-D", "--property", section=MQTT5, multiple=True, metavar="COMMAND IDENTIFIER VALUE",
           help="A property of connect, publish, subscribe, unsubscribe, disconnect or will, as in: -D publish content-type text/plain. "
                "user-property takes four words: -D publish user-property NAME VALUE."),
    option("--will-topic", section=WILL, type=TopicName(), metavar="TOPIC", help="Where it is published."),
    option("--will-payload", section=WILL, metavar="TEXT", help="Its payload.  [default: empty]"),
    option("--will-qos", section=WILL, type=QOS, metavar="QOS", help="Its QoS.  [default: 0]"),
    option("--will-retain", section=WILL, is_flag=True, help="Retain it."),
    option("--cafile", section=TLS, type=_PATH, metavar="FILE", help="Trust the certificates in this PEM file."),
    option("--capath", section=TLS, type=_PATH, metavar="DIR", help="Trust those in this directory (after `openssl rehash`)."),
    option("--tls-use-os-certs", section=TLS, is_flag=True, help="Trust those of the system (so does mqtts://)."),
    option("--cert", section=TLS, type=_PATH, metavar="FILE", help="Our own certificate (PEM), if the broker asks for one."),
    option("--key", section=TLS, type=_PATH, metavar="FILE", help="Its private key (PEM)."),
    option("--keyform", section=TLS, metavar="FORM", help="The form of the key: pem."),
    option("--insecure", section=TLS, is_flag=True, help="Do not compare the certificate's name with the host. For tests only."),
    option("--tls-version", section=TLS, type=click.Choice(["tlsv1.2", "tlsv1.3"]), metavar="VERSION", help="tlsv1.2 or tlsv1.3, at the least."),
    option("--tls-alpn", section=TLS, metavar="PROTOCOL", help="Ask for this protocol (ALPN)."),
    option("--ciphers", section=TLS, metavar="LIST", help="Ciphers of TLS 1.2, as OpenSSL names them."),
    option("-W", "timeout", section=ABOUT, type=Seconds(), metavar="SECONDS", help="Give up after so long, counted from the connection; exit code 27."),
    option("-d", "--debug", section=ABOUT, count=True, help="Show each packet on stderr; -dd its bytes too."),
    option("--quiet", section=ABOUT, is_flag=True, help="No messages about the run; only wrong usage is told."),
    option("--progress", section=ABOUT, is_flag=True, help="Show on stderr how far a long job is."),
)  # fmt: skip


def connection_options(function: Function) -> Function:
    """Give a command the options that pub, sub and rr share."""
    for decorate in reversed(_SHARED):
        function = decorate(function)
    return _unavailable(function)


# ---- what they come to --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsSettings:
    cafile: str | None
    capath: str | None
    cert: str | None
    key: str | None
    insecure: bool
    version: str | None
    alpn: str | None
    ciphers: str | None


@dataclass(frozen=True)
class WillSettings:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties


@dataclass(frozen=True)
class Connection:
    """How to reach the broker and as whom, checked. `password` is kept out of repr."""

    host: str
    port: int
    unix: str | None
    url_topic: str | None
    bind_address: str | None
    nodelay: bool
    client_id: str
    username: str | None
    password: bytes | None = field(repr=False)
    version: str
    keep_alive_s: int
    clean_start: bool
    session_expiry_s: float
    max_inflight: int | None
    will: WillSettings | None
    tls: TlsSettings | None
    properties: Mapping[str, Properties]
    timeout_s: float
    debug: int
    quiet: bool
    progress: bool

    @property
    def address(self) -> str:
        """For people: host:port, or the path."""
        if self.unix is not None:
            return self.unix
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_USED_BY: Final = ("connect", "publish", "subscribe", "unsubscribe", "disconnect", "will")


def connection_of(params: Mapping[str, Any]) -> Connection:
    """The shared options of one command line, checked against each other. Raises click.UsageError."""
    url = _read_url(params["url"])
    _clash(params, url)
    version = params["version"] or "5.0"
    given = _properties_of(params["property"])
    if given and version != "5.0":
        raise click.UsageError(f"-D needs MQTT 5.0, and -V chose {version}")
    tls = _tls_of(params, url)
    username = url.username if url.username is not None else params["username"]
    password = url.password if url.password is not None else params["password"]
    if password is not None and username is None and version != "5.0":
        raise click.UsageError(f"-P needs -u: MQTT {version} has no password without a user name")
    client_id, expiry = _session_of(params, version)
    return Connection(
        host=url.host or params["host"] or "localhost",
        port=url.port or params["port"] or (8883 if tls is not None else 1883),
        unix=params["unix"],
        url_topic=url.topic,
        bind_address=params["bind_address"],
        nodelay=params["nodelay"],
        client_id=client_id,
        username=username,
        password=None if password is None else os.fsencode(password),
        version=version,
        keep_alive_s=params["keepalive"],
        clean_start=not params["keep_session"],
        session_expiry_s=expiry,
        max_inflight=params["max_inflight"],
        will=_will_of(params, given),
        tls=tls,
        properties=given,
        timeout_s=math.inf if params["timeout"] is None else params["timeout"],
        debug=params["debug"],
        quiet=params["quiet"],
        progress=params["progress"],
    )


def _properties_of(words: Iterable[str]) -> dict[str, Properties]:
    try:
        return properties.collect([given.split(PROPERTY_SEPARATOR) for given in words], _USED_BY)
    except properties.PropertyFault as fault:
        raise click.UsageError(f"-D: {printable(fault)}") from None


def _session_of(params: Mapping[str, Any], version: str) -> tuple[str, float]:
    """(client id, session expiry in seconds); what lasts needs a name to be found again by."""
    expiry = params["session_expiry"]
    if expiry is not None and version != "5.0":
        raise click.UsageError(f"-x needs MQTT 5.0, and -V chose {version}")
    if expiry is None:
        expiry = math.inf if params["keep_session"] else 0.0
    if params["client_id"] is None and (params["keep_session"] or expiry == math.inf):
        raise click.UsageError(f"{'-c' if params['keep_session'] else '-x'} needs a client id (-i) to find the session again by")
    if params["client_id"] is not None:
        return params["client_id"], expiry
    if params["id_prefix"] is not None:
        return f"{params['id_prefix']}{os.getpid()}", expiry
    # Before 5.0 the broker cannot tell us which id it chose, and 3.1 wants one of 1 to 23 bytes.
    return "" if version == "5.0" else "broker-" + secrets.token_hex(8), expiry


@dataclass(frozen=True)
class _Url:
    scheme: str | None = None
    host: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    topic: str | None = None


def _read_url(text: str | None) -> _Url:
    """-L, whose path is the topic. The text is never repeated in a message, for it may hold a password."""
    if text is None:
        return _Url()
    form = "-L: a URL expected, as in mqtt://localhost:1883/topic (or mqtts://), with user:password@ before the host where needed"
    scheme, separator, _ = text.partition("://")
    if scheme in ("ws", "wss"):
        raise click.UsageError("-L: WebSocket is not spoken yet; mqtt:// and mqtts:// are")
    if not separator or scheme not in ("mqtt", "mqtts"):
        raise click.UsageError(form)
    # A topic may hold ? and #, which mean nothing else here: they are taken off before the URL is read.
    authority, slash, topic = text.partition("://")[2].partition("/")
    try:
        parts = urlsplit(f"{scheme}://{authority}")
        port = parts.port
    except ValueError:
        raise click.UsageError(f"{form}; the host or the port is wrong") from None
    if not parts.hostname or parts.query or parts.fragment or port == 0:
        raise click.UsageError(f"{form}; the host or the port is wrong")
    return _Url(
        scheme=scheme,
        host=unquote(parts.hostname),
        port=port,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        topic=unquote(topic) if slash and topic else None,
    )


def _clash(params: Mapping[str, Any], url: _Url) -> None:
    """Options that contradict each other, each in one line."""
    if url.scheme is not None:
        for name, letter in (("host", "-h"), ("port", "-p"), ("unix", "--unix")):
            if params[name] is not None:
                raise click.UsageError(f"{letter} and -L both say where the broker is; give one of them")
    if params["unix"] is not None:
        for name, letter in (("host", "-h"), ("port", "-p"), ("bind_address", "-A")):
            if params[name] is not None:
                raise click.UsageError(f"{letter} means nothing with --unix; give one of them")
    if params["client_id"] is not None and params["id_prefix"] is not None:
        raise click.UsageError("-i and -I both say the client id; give one of them")
    if params["will_topic"] is None:
        for name in ("will_payload", "will_qos", "will_retain"):
            if params[name] not in (None, False):
                raise click.UsageError(f"--{name.replace('_', '-')} needs --will-topic")
    if (params["cert"] is None) != (params["key"] is None):
        raise click.UsageError("--cert and --key go together")
    if params["keyform"] not in (None, "pem"):
        raise click.UsageError(f"--keyform {params['keyform']} is not available here: keys are read from PEM files")


def _will_of(params: Mapping[str, Any], given: Mapping[str, Properties]) -> WillSettings | None:
    if params["will_topic"] is None:
        if "will" in given:
            raise click.UsageError("-D will needs --will-topic")
        return None
    payload = os.fsencode(params["will_payload"] or "")
    if len(payload) > 65_535:
        raise click.UsageError("--will-payload is longer than 65,535 bytes, the most that a Will holds")
    return WillSettings(
        topic=params["will_topic"],
        payload=payload,
        qos=params["will_qos"] or 0,
        retain=params["will_retain"],
        properties=given.get("will", Properties()),
    )


def _tls_of(params: Mapping[str, Any], url: _Url) -> TlsSettings | None:
    """Any TLS option, mqtts:// or port 8883 mean TLS."""
    named = ("cafile", "capath", "cert", "key", "insecure", "tls_use_os_certs", "tls_version", "tls_alpn", "ciphers")
    wanted = any(params[name] not in (None, False) for name in named)
    if url.scheme == "mqtt" and wanted:
        raise click.UsageError("-L says mqtt://, without TLS, and a TLS option was given; mqtts:// has both")
    if not wanted and url.scheme != "mqtts" and 8883 not in (params["port"], url.port):
        return None
    if params["unix"] is not None:
        raise click.UsageError("TLS over a Unix socket is not available here")
    return TlsSettings(
        cafile=params["cafile"],
        capath=params["capath"],
        cert=params["cert"],
        key=params["key"],
        insecure=params["insecure"],
        version=params["tls_version"],
        alpn=params["tls_alpn"],
        ciphers=params["ciphers"],
    )
