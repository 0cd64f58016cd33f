"""What the shared options of pub, sub and rr come to together: how to reach the broker, and as whom. Contradictions are found here."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import click

from broker.cli import properties, values
from broker.cli.options import PROPERTY_SEPARATOR
from broker.cli.secret import Secret, secret_of
from broker.messages import Version
from broker.net.websocket_path import PATH
from broker.wire.packets import Properties


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
    """How to reach the broker and as whom, checked."""

    host: str
    port: int
    unix: str | None
    ws_path: str | None
    """None: no WebSocket."""
    url_topic: str | None
    bind_address: str | None
    client_id: str
    username: str | None
    password: Secret | None
    auth_method: str | None
    """Of enhanced authentication: what the password is shown by, instead of in CONNECT."""
    version: Version
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
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.ws_path or ''}"


SCRAM: Final = "SCRAM-SHA-256"
_PORTS: Final = {(False, False): 1883, (False, True): 8883, (True, False): 80, (True, True): 443}
"""(WebSocket, TLS)"""
_USED_BY: Final = ("connect", "disconnect", "publish", "subscribe", "unsubscribe", "will")


def connection_of(params: Mapping[str, Any]) -> Connection:
    """The shared options of one command line, checked against each other. Raises click.UsageError."""
    url = _read_url(params["url"])
    _clash(params, url)
    version: Version = params["version"] or "5.0"
    given = _properties_of(params["property"])
    if given and version != "5.0":
        raise click.UsageError(f"-D needs MQTT 5.0, and -V chose {version}")
    tls = _tls_of(params, url)
    ws_path = _ws_path_of(params, url)
    username = url.username if url.username is not None else params["username"]
    password = secret_of(url.password, params)
    auth_method = None if params["auth"] is None else _auth_method_of(params["auth"], version, username, password, given)
    if password is not None and username is None and version != "5.0":
        raise click.UsageError(f"{password.option} needs -u: MQTT {version} has no password without a user name")
    client_id, expiry = _session_of(params, version)
    _check_last_expiry(given, expiry)
    return Connection(
        host=url.host or params["host"] or "localhost",
        port=url.port or params["port"] or _PORTS[ws_path is not None, tls is not None],
        unix=params["unix"],
        ws_path=ws_path,
        url_topic=url.topic,
        bind_address=params["bind_address"],
        client_id=client_id,
        username=username,
        password=password,
        auth_method=auth_method,
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
        raise click.UsageError(f"-D: {values.printable(fault)}") from None


def _auth_method_of(method: str, version: str, username: str | None, password: Secret | None, given: Mapping[str, Properties]) -> str:
    """--auth, checked against the rest."""
    if version != "5.0":
        raise click.UsageError(f"--auth needs MQTT 5.0, and -V chose {version}")
    connect = given.get("connect", Properties())
    if connect.authentication_method is not None or connect.authentication_data is not None:
        raise click.UsageError("--auth and -D connect authentication-... both say how to authenticate; give one of them")
    if password is None:
        raise click.UsageError(f"--auth {method} needs a password or a token (--pw-file, --pw-env or -P)")
    if not method.upper().startswith("SCRAM-"):
        return method
    if method.upper() != SCRAM:
        raise click.UsageError(f"--auth {method} is not available here: {SCRAM} is")
    if username is None:
        raise click.UsageError(f"--auth {SCRAM} needs a user name (-u)")
    return SCRAM


def _check_last_expiry(given: Mapping[str, Properties], expiry_s: float) -> None:
    first, last = given.get("connect", Properties()).session_expiry_interval, given.get("disconnect", Properties()).session_expiry_interval
    if last and not (expiry_s if first is None else first):
        # [MQTT5-3.14.2-2]
        raise click.UsageError("-D disconnect session-expiry-interval needs -x (or -c): a session that ends with its connection cannot be kept")


def _session_of(params: Mapping[str, Any], version: str) -> tuple[str, float]:
    """(client id, session expiry in seconds); what lasts needs a name to be found again by."""
    expiry = params["session_expiry"]
    if expiry is not None and version != "5.0":
        raise click.UsageError(f"-x needs MQTT 5.0, and -V chose {version}")
    if expiry is None:
        # Before 5.0 the Clean Session flag alone says it: what is kept is kept for ever.
        expiry = math.inf if params["keep_session"] and version == "5.0" else 0.0
    if not params["client_id"] and (params["keep_session"] or expiry == math.inf):
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
    form = "-L: a URL expected, as in mqtt://localhost:1883/topic (or mqtts, ws, wss), with user:password@ before the host where needed"
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in ("mqtt", "mqtts", "ws", "wss"):
        raise click.UsageError(form)
    # A topic may hold ? and #, which mean nothing else here: they are taken off before the URL is read.
    authority, slash, topic = text.partition("://")[2].partition("/")
    try:
        parts = urlsplit(f"{scheme}://{authority}")
        port = parts.port
    except ValueError:
        raise click.UsageError(f"{form}; the host or the port is wrong") from None
    if not parts.hostname or not values.is_text(authority) or parts.query or parts.fragment or port == 0:
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


def _ws_path_of(params: Mapping[str, Any], url: _Url) -> str | None:
    """--ws, or ws:// in -L, whose path is the topic as ever."""
    path: str | None = params.get("ws_path")
    if not params.get("ws") and url.scheme not in ("ws", "wss"):
        if path is not None:
            raise click.UsageError("--ws-path needs --ws")
        return None
    if url.scheme in ("mqtt", "mqtts"):
        raise click.UsageError(f"-L says {url.scheme}://, and --ws WebSocket; give one of them")
    if params["unix"] is not None:
        raise click.UsageError("WebSocket over a Unix socket is not available here")
    path = PATH if path is None else path
    if not path.startswith("/") or "?" in path or "#" in path:
        raise click.UsageError("--ws-path: a path expected, as in /mqtt")
    return path


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
    if url.scheme in ("mqtt", "ws") and wanted:
        raise click.UsageError(f"-L says {url.scheme}://, without TLS, and a TLS option was given; {url.scheme}s:// has both")
    if not wanted and url.scheme not in ("mqtts", "wss") and 8883 not in (params["port"], url.port):
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
