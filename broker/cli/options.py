"""The options of `pub`, `sub` and `rr`: Mosquitto's letters and names, each defined once, and nothing here imports trio, so that --help stays quick.

Three things click does not do by itself live here: -D takes three words or four, options are shown in sections, and an option that we do
not have says so instead of being unknown. What the options come to together is `settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from broker.cli import properties, values

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
    """The command line with every -D and --property made one word, its own joined by NULs: click has no option of variable length."""
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
}


def _unavailable(function: Function) -> Function:
    for name in _INSTEAD:
        function = click.option(name, hidden=True, expose_value=False, callback=_refuse)(function)
    return function


# ---- the options that all three share -----------------------------------------------------------------------------


_SHARED: Final[tuple[Callable[[Any], Any], ...]] = (
    option("-h", "--host", section=WHERE, type=values.host, metavar="HOST", help="The broker's host.  [default: localhost]"),
    option("-p", "--port", section=WHERE, type=values.port, metavar="PORT", help="Its port.  [default: 1883; 8883 with TLS; 80 and 443 with --ws]"),
    option("--unix", section=WHERE, type=values.path, metavar="PATH", help="A Unix socket instead of host and port."),
    option(
        "-L", "--url", section=WHERE, metavar="URL",
        help="Everything at once: mqtt(s):// or ws(s)://[user[:password]@]host[:port]/topic. %-escapes are decoded.",
    ),
    option("--ws", section=WHERE, is_flag=True, help="Connect by WebSocket."),
    option("--ws-path", section=WHERE, metavar="PATH", help="Where the WebSocket is on that host.  [default: /mqtt]"),
    option("-A", "bind_address", section=WHERE, metavar="ADDRESS", help="Connect from this local address."),
    option("--nodelay", section=WHERE, is_flag=True, expose_value=False, help="Send small packets at once, as is always done here."),
    option("-i", "--id", "client_id", section=WHO, type=values.text, metavar="ID",
           help="The client id.  [default: the broker chooses; made up before 5.0]"),
    option("-I", "--id-prefix", section=WHO, type=values.text, metavar="PREFIX", help="The client id is this and the process id."),
    option("-u", "--username", section=WHO, type=values.text, metavar="NAME", help="The user name."),
    option("-P", "--pw", "password", section=WHO, metavar="PASSWORD", help="The password, which others here can see while this runs."),
    option("--pw-file", "password_file", section=WHO, metavar="FILE",
           help="The password, or a token, is the first line of this file. A token is read anew for each connection."),
    option("--pw-env", "password_variable", section=WHO, metavar="NAME", help="The password, or a token, is in this environment variable."),
    option("--auth", section=WHO, type=values.text, metavar="METHOD",
           help="Authenticate by this method (MQTT 5.0): SCRAM-SHA-256 proves the password and does not send it; any other, as JWT, sends "
                "the token as its data."),
    option("-V", "--protocol-version", "version", section=WHO, type=values.version, metavar="VERSION", help="5, 311 or 31.  [default: 5]"),
    option("-k", "--keepalive", section=WHO, type=values.whole(0, 65_535), default=60, metavar="SECONDS",
           help="Ping after so long a silence.  [default: 60]"),
    option("-c", "--disable-clean-session", "keep_session", section=WHO, is_flag=True,
           help="Keep the session when leaving, and take up the old one. Wants -i."),
    option("-x", "--session-expiry-interval", "session_expiry", section=WHO, type=values.session_expiry, metavar="SECONDS",
           help="How long the session outlives the connection; -1 or ∞ for ever.  [default: 0; with -c ∞]"),
    option("-M", "--max-inflight", section=WHO, type=values.whole(1, 65_535), metavar="COUNT",
           help="Messages of QoS 1 and 2 under way at once.  [default: 20]"),
    option("-D", "--property", section=MQTT5, multiple=True, metavar="COMMAND IDENTIFIER VALUE",
           help="A property of connect, publish, subscribe, unsubscribe or will, as in: -D publish content-type text/plain. "
                "user-property takes four words: -D publish user-property NAME VALUE."),
    option("--will-topic", section=WILL, type=values.checked_topic, metavar="TOPIC", help="Where it is published."),
    option("--will-payload", section=WILL, metavar="TEXT", help="Its payload.  [default: empty]"),
    option("--will-qos", section=WILL, type=values.qos, metavar="QOS", help="Its QoS.  [default: 0]"),
    option("--will-retain", section=WILL, is_flag=True, help="Retain it."),
    option("--cafile", section=TLS, metavar="FILE", help="Trust the certificates in this PEM file."),
    option("--capath", section=TLS, metavar="DIR", help="Trust those in this directory (after `openssl rehash`)."),
    option("--tls-use-os-certs", section=TLS, is_flag=True, help="Trust those of the system (so does mqtts://)."),
    option("--cert", section=TLS, metavar="FILE", help="Our own certificate (PEM), if the broker asks for one."),
    option("--key", section=TLS, metavar="FILE", help="Its private key (PEM)."),
    option("--keyform", section=TLS, metavar="FORM", help="The form of the key: pem."),
    option("--insecure", section=TLS, is_flag=True, help="Do not compare the certificate's name with the host. For tests only."),
    option("--tls-version", section=TLS, type=click.Choice(["tlsv1.2", "tlsv1.3"]), metavar="VERSION", help="tlsv1.2 or tlsv1.3, at the least."),
    option("--tls-alpn", section=TLS, metavar="PROTOCOL", help="Ask for this protocol (ALPN)."),
    option("--ciphers", section=TLS, metavar="LIST", help="Ciphers of TLS 1.2, as OpenSSL names them."),
    option("-W", "timeout", section=ABOUT, type=values.seconds, metavar="SECONDS",
           help="Give up when connecting, or what comes after it, takes longer; exit code 27."),
    option("-d", "--debug", section=ABOUT, count=True, help="Show each packet on stderr; -dd its bytes too."),
    option("--quiet", section=ABOUT, is_flag=True, help="No messages about the run; only wrong usage is told."),
    option("--progress", section=ABOUT, is_flag=True, help="Show on stderr how far a long job is."),
)  # fmt: skip


def connection_options(function: Function) -> Function:
    """Give a command the options that pub, sub and rr share."""
    for decorate in reversed(_SHARED):
        function = decorate(function)
    return _unavailable(function)
