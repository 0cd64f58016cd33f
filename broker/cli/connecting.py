"""From checked options to an open connection: the TLS context, the keywords of `connect`, and what is said while it is away."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import trio

from broker.cli.running import TIMED_OUT, WRONG_USAGE, Failure, os_error_line, say
from broker.cli.settings import SCRAM, Connection, TlsSettings
from broker.cli.tracing import Tracer
from broker.client import Client, Reconnect, Will, connect
from broker.client.authentication import ScramSHA256, Token
from broker.errors import ConnectError

LOST_NOTICE_DELAY_S: Final = 0.3
CONNECT_TIMEOUT_S: Final = 10
"""As long as `connect` waits by itself; -W may say less."""


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Raises Failure with the file's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.cafile is None and settings.capath is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cafile=settings.cafile, capath=settings.capath)
        except (OSError, ssl.SSLError) as error:
            raise Failure(f"cannot read the trusted certificates of {settings.cafile or settings.capath}: {_tls_fault(error)}") from error
    if settings.cert is not None:
        try:
            context.load_cert_chain(settings.cert, settings.key)
        except (OSError, ssl.SSLError) as error:
            raise Failure(f"cannot use the certificate {settings.cert} with the key {settings.key}: {_tls_fault(error)}") from error
    context.check_hostname = not settings.insecure
    if settings.version is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.version == "tlsv1.3" else ssl.TLSVersion.TLSv1_2
    if settings.alpn is not None:
        context.set_alpn_protocols([settings.alpn])
    if settings.ciphers is not None:
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError as error:
            raise Failure(f"--ciphers: OpenSSL knows none of {settings.ciphers!r}") from error
    return context


def _tls_fault(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason or "").lower().replace("_", " ")
        return reason or "no certificate or key in PEM form found in it"
    return os_error_line(error)


def url_of(settings: Connection) -> str:
    """The URL for `connect`, without user and password: those go as keywords, so that no message can show them."""
    if settings.unix is not None:
        return "unix://" + quote(os.fsencode(os.path.abspath(settings.unix)))
    host = quote(settings.host, safe=":")
    scheme = ("mqtt" if settings.ws_path is None else "ws") + ("s" if settings.tls is not None else "")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.ws_path or ''}"


def authentication_of(settings: Connection) -> ScramSHA256 | Token | None:
    """What --auth says. Raises Failure."""
    if settings.auth_method is None:
        return None
    assert settings.password is not None
    if settings.auth_method != SCRAM:
        settings.password.newest_text()  # what is wrong with it is said before anybody is dialled
        return Token(settings.password.newest_text, settings.auth_method)
    assert settings.username is not None
    try:
        return ScramSHA256(settings.username, settings.password.newest_text())
    except ValueError as error:
        raise Failure(f"--auth {SCRAM}: the user name or the password {error}", WRONG_USAGE) from None


def will_of(settings: Connection) -> Will | None:
    if settings.will is None:
        return None
    given = settings.will.properties
    return Will(
        settings.will.topic,
        settings.will.payload,
        qos=settings.will.qos,
        retain=settings.will.retain,
        delay_s=given.will_delay_interval or 0,
        content_type=given.content_type,
        response_topic=given.response_topic,
        correlation_data=given.correlation_data,
        user_properties=given.user_properties,
        message_expiry_s=given.message_expiry_interval,
        payload_is_text=None if given.payload_format_indicator is None else given.payload_format_indicator == 1,
    )


@asynccontextmanager
async def open_connection(settings: Connection, *, stay: bool) -> AsyncIterator[Client]:
    """Connect as the options say. `stay`: after the first success come back whenever the connection is lost, and say so."""
    keywords: dict[str, Any] = {}
    if settings.tls is not None:
        keywords["tls"] = tls_context(settings.tls)
    if settings.max_inflight is not None:
        keywords["outgoing_count_max"] = min(settings.max_inflight, 60_000)
    if settings.bind_address is not None:
        keywords["bind_address"] = settings.bind_address
    if "connect" in settings.properties:
        keywords["connect_properties"] = settings.properties["connect"]
    if "disconnect" in settings.properties:
        keywords["disconnect_properties"] = settings.properties["disconnect"]
    if settings.debug:
        keywords["on_packet"] = Tracer(with_bytes=settings.debug > 1)
    auth = authentication_of(settings)
    try:
        opened = connect(
            url_of(settings),
            client_id=settings.client_id,
            username=None if settings.auth_method == SCRAM else settings.username,
            auth=auth,
            password=None if settings.password is None or auth is not None else settings.password.newest,
            version=settings.version,
            keep_alive_s=settings.keep_alive_s,
            clean_start=settings.clean_start,
            session_expiry_s=settings.session_expiry_s,
            will=will_of(settings),
            reconnect=Reconnect() if stay else None,
            # 65,535 is not sent, so the broker keeps to its own bound. (Mosquitto 2.0 oversteps a smaller one at QoS 2 by one message.)
            receive_maximum=settings.max_inflight or 65_535,
            connect_timeout_s=min(settings.timeout_s, CONNECT_TIMEOUT_S),
            # An alias would be printed (%A, %j) though nobody asked for one; -D connect topic-alias-maximum does ask.
            topic_alias_maximum=0,
            **keywords,
        )
    except ValueError as error:  # what no packet can say
        raise Failure(str(error), WRONG_USAGE) from error
    began = trio.current_time()
    try:
        async with opened as client, trio.open_nursery() as nursery:
            if stay:
                nursery.start_soon(_tell, client, settings)
            yield client
            nursery.cancel_scope.cancel()
    except ConnectError as error:
        if trio.current_time() - began < settings.timeout_s:
            raise
        raise Failure(f"{error} (-W)", TIMED_OUT) from error


async def _tell(client: Client, settings: Connection) -> None:
    away = False
    async for state in client.connections():
        if state == "lost":
            away = True
            # Why it is lost may be a reason to end (another program with our client id): then that is said, and we are cancelled here.
            await trio.sleep(LOST_NOTICE_DELAY_S)
            if not settings.quiet:
                say(f"connection to {settings.address} lost; trying again")
        elif away:
            away = False
            if not settings.quiet:
                say(f"connected to {settings.address} again" + (", the session is kept" if state == "resumed" else ""))
