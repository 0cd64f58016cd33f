"""TLS of a listener from files: what they must be, the context they become, and the name in a client's certificate.

A context is made anew whenever the files change, and serves the handshakes from then on: so a certificate authority that was taken
away is gone, which the live context could not forget, and nobody who is connected notices.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from broker.errors import ConfigError
from broker.words import strerror

Identity = Literal["none", "cn", "san"]
TlsVersion = Literal["tlsv1.2", "tlsv1.3"]
Fault = tuple[str, str]
"""The key, what was expected."""

_SERVER_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_REHASHED: Final = re.compile(r"[0-9a-f]{8}\.\d+")
_NO_CHECK_TIME: Final = 0x20_0000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""
_SAN_ORDER: Final = ("DNS", "URI", "email", "IP Address")
_STRICT_CODES: Final = range(80, 95)
"""X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA to X509_V_ERR_EC_KEY_EXPLICIT_PARAMS, found only with X509_V_FLAG_X509_STRICT."""
_REASONS: Final = {
    "WRONG_VERSION_NUMBER": "the other end does not speak TLS",
    "HTTP_REQUEST": "the other end speaks HTTP, not TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other end showed no certificate",
    # What the other end says of us, in an alert (RFC 8446, 6.2). Who has no certificate hears of it by a name only in TLS 1.3.
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other end asks for a certificate, and was shown none",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the other end refuses the handshake: it may ask for a certificate, or for other ciphers",
    "TLSV1_ALERT_UNKNOWN_CA": "the other end does not trust who signed the certificate that it was shown",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other end does not take the certificate that it was shown",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the other end does not take the certificate that it was shown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate that the other end was shown is out of date",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the certificate that the other end was shown is revoked",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other end does not speak this version of TLS",
    "UNSUPPORTED_PROTOCOL": "the other end does not speak this version of TLS",
}
"""OpenSSL's reasons, of both ends."""


class TlsName(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One more certificate, shown to clients that ask for one of its names (SNI). server_names: "mqtt.example.org", "*.example.org"; by
    default the DNS names in the certificate's Subject Alternative Name. certificate, key: as in TlsFiles."""

    certificate: str
    key: str | None = None
    server_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.server_names, tuple):  # a text would be a list of letters, and a list has no hash
            raise TypeError('server_names is a tuple: server_names=("mqtt.example.org",)')


class TlsFiles(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The files of a listener with TLS, read again when they change: Listener(tls=TlsFiles(certificate="server.pem", key="server.key")).

    certificate: the chain, PEM, the server's own first; key: of the first, without a passphrase, by default in the same file. client_ca:
    who may sign clients' certificates, a file or a directory (`openssl rehash`); without it none is asked for. crl: which of those are revoked
    (PEM, a list of each authority). require_certificate: no handshake without one. identity: the user name comes from the certificate, and no
    password is asked for: cn = Common Name, san = the first Subject Alternative Name (DNS, URI, email, IP). tls_version: at the least. ciphers:
    of TLS 1.2, as OpenSSL names them. names: further certificates; `certificate` is for who asks for none of their names.
    """

    certificate: str
    key: str | None = None
    client_ca: str | None = None
    crl: str | None = None
    require_certificate: bool = False
    identity: Identity = "none"
    tls_version: TlsVersion = "tlsv1.2"
    ciphers: str | None = None
    names: tuple[TlsName, ...] = ()

    @property
    def pairs(self) -> tuple[TlsFiles | TlsName, ...]:
        """Everything with a certificate and a key: the main ones first."""
        return (self, *self.names)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all files that are named."""
        every = [self.client_ca, self.crl]
        for pair in self.pairs:
            every += [pair.certificate, pair.key]
        return tuple(path for path in every if path is not None)


def make_context(files: TlsFiles, protocol: str = "mqtt") -> ssl.SSLContext:
    """The context of a listener, which knows those of the other names. ConfigError names every mistake."""
    problems: list[Fault] = []
    contexts = []
    for place, pair in enumerate(files.pairs):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts.append(context)
        problems += [(f"names[{place - 1}].{key}" if place else key, text) for key, text in _load_chain(context, pair)]
        fault = _configure(context, files, protocol)
        if fault is not None and not place:  # else it is the same once more
            problems.append(fault)
    named, faults = names_of(files) if files.names else ({}, [])
    if problems or faults:
        raise ConfigError([*problems, *faults], "tls")
    if named:
        choose_by_name(contexts[0], {name: contexts[place] for name, place in named.items()})
    return contexts[0]


def _configure(context: ssl.SSLContext, files: TlsFiles, protocol: str) -> Fault | None:
    """All but the certificate itself: it is asked of the context that the name has chosen."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if files.tls_version == "tlsv1.3" else ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # A client that offers neither is served all the same: many offer nothing.
    context.set_alpn_protocols(["mqtt"] if protocol == "mqtt" else ["http/1.1"])
    if files.ciphers is not None:
        if files.tls_version == "tlsv1.3":
            return "ciphers", 'means nothing with tls_version = "tlsv1.3", whose ciphers OpenSSL chooses'
        try:
            context.set_ciphers(files.ciphers)
        except ssl.SSLError:
            return "ciphers", f"OpenSSL knows none of {files.ciphers!r}"
    if files.identity != "none" and not files.require_certificate:
        return "require_certificate", "expected true; identity takes the user name from the client's certificate"
    if files.client_ca is None:
        wanted = "require_certificate" if files.require_certificate else "crl" if files.crl is not None else None
        return None if wanted is None else ("client_ca", f"is missing; {wanted} needs to know who may have signed")
    context.verify_mode = ssl.CERT_REQUIRED if files.require_certificate else ssl.CERT_OPTIONAL
    return _load_authorities(context, files.client_ca) or (None if files.crl is None else _load_crl(context, files.crl))


def _load_authorities(context: ssl.SSLContext, path: str) -> Fault | None:
    fault = _unreadable("client_ca", path)
    if fault is not None:
        return fault
    if os.path.isdir(path):
        # OpenSSL looks there when somebody comes, and only for names that are made of what it looks for.
        if not any(map(_REHASHED.fullmatch, os.listdir(path))):
            return "client_ca", f"expected a directory with certificates, named as `openssl rehash` does, got {path}"
        context.load_verify_locations(capath=path)
        return None
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        return "client_ca", f"expected certificates (PEM) in {path}"
    return None


def _load_crl(context: ssl.SSLContext, path: str) -> Fault | None:
    fault = _unreadable("crl", path)
    if fault is not None:
        return fault
    lists_count = context.cert_store_stats()["crl"]
    with contextlib.suppress(ssl.SSLError):
        context.load_verify_locations(path)
    if context.cert_store_stats()["crl"] == lists_count:
        return "crl", f"expected a certificate revocation list (PEM) in {path}"
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return None


def _load_chain(context: ssl.SSLContext, pair: TlsFiles | TlsName) -> list[Fault]:
    # OpenSSL, when it is asked, names no file.
    unreadable = [_unreadable("certificate", pair.certificate), None if pair.key is None else _unreadable("key", pair.key)]
    faults = [fault for fault in unreadable if fault is not None]
    if faults:
        return faults
    key = pair.key or pair.certificate
    try:
        # A passphrase would be asked for at the terminal, from inside the event loop.
        context.load_cert_chain(pair.certificate, pair.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return [("key", f"{key} does not belong to the certificate {pair.certificate}")]
        if not error.reason or "DECRYPT" in error.reason:
            return [("key", f"{key} has a passphrase, or is no private key (PEM); expected one without")]
        return [("certificate", f"expected a certificate chain and its key (PEM) in {pair.certificate}{' and ' + pair.key if pair.key else ''}")]
    return []


def _unreadable(key: str, path: str) -> Fault | None:
    try:
        if key == "client_ca" and os.path.isdir(path):
            os.listdir(path)
            return None
        with open(path, "rb"):
            return None
    except OSError as error:
        return key, f"{path} cannot be read: {strerror(error)}"


# ---- several certificates, chosen by name (SNI) ---------------------------------------------------------------------------


def names_of(files: TlsFiles) -> tuple[dict[str, int], list[Fault]]:
    """(server name to the number of its certificate, 0 for the main one; mistakes). What is written goes before what certificates say,
    and of those the earlier one."""
    named: dict[str, int] = {}
    problems: list[Fault] = []
    for place, entry in enumerate(files.names, 1):
        for name in entry.server_names:
            key = f"names[{place - 1}].server_names"
            if not _SERVER_NAME.fullmatch(name):
                problems.append((key, f"expected host names, as mqtt.example.org or *.example.org, got {name!r}"))
            elif named.setdefault(name.lower(), place) != place:
                problems.append((key, f"{name} stands in names[{named[name.lower()] - 1}] too"))
    for place, pair in enumerate(files.pairs):
        if isinstance(pair, TlsName) and pair.server_names:
            continue
        found = dns_names_of(pair)
        for name in found or ():
            named.setdefault(name.lower(), place)
        if found == [] and place:
            problems.append((f"names[{place - 1}].server_names", f"is missing; {pair.certificate} has no DNS name in its Subject Alternative Name"))
    return named, problems


def dns_names_of(pair: TlsFiles | TlsName) -> list[str] | None:
    """Of its certificate; None if that and its key cannot be loaded, which loading them tells better.

    By a handshake in memory, between it and a client that trusts it as it is, expired or not: the standard library has no other public way to
    read what a certificate says.
    """
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        shown.load_cert_chain(pair.certificate, pair.key, password="")
        looking.load_verify_locations(pair.certificate)
    except (OSError, ssl.SSLError):
        return None
    looking.check_hostname = False
    looking.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = shown.wrap_bio(to_server, to_client, server_side=True)
    client = looking.wrap_bio(to_client, to_server)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            return []  # one that no client would take from a server
    found: Mapping[str, Any] = client.getpeercert() or {}
    return [str(value) for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]


def choose_by_name(main: ssl.SSLContext, contexts: Mapping[str, ssl.SSLContext]) -> None:
    """The certificate of the name that a client asks for, of its wildcard, or the main one."""

    def choose(connection: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> None:
        name = (server_name or "").lower()
        found = contexts.get(name) or contexts.get("*." + name.partition(".")[2])
        if found is not None:
            connection.context = found

    main.sni_callback = choose


# ---- what certificates and errors say --------------------------------------------------------------------------------------


def identity_of(certificate: Mapping[str, Any] | None, identity: Identity) -> str | None:
    """The user name in what `getpeercert()` gave; None if there is none."""
    if certificate is None:
        return None
    if identity == "cn":
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        return names[-1] if names else None
    found = dict(reversed(certificate.get("subjectAltName", ())))
    return next((str(found[kind]) for kind in _SAN_ORDER if kind in found), None)


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate was not accepted: {verify_fault(error)}"
    if isinstance(error, ssl.SSLZeroReturnError):
        return "the other end closed it"
    reason = error.reason or str(error)
    return _REASONS.get(reason) or reason.lower().replace("_", " ")


def verify_fault(error: ssl.SSLCertVerificationError) -> str:
    """Why OpenSSL refused a certificate; and what to do where only a context that a program made could."""
    if error.verify_code in _STRICT_CODES:
        return f"{error.verify_message} (asked for by create_default_context() of Python 3.13; verify_flags &= ~ssl.VERIFY_X509_STRICT takes it back)"
    return error.verify_message


def cause_of(error: BaseException) -> BaseException:
    """OpenSSL's own error, if one led to this; else what did."""
    while error.__cause__ is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error


def fault_of(error: BaseException) -> str:
    """Why a handshake failed, in words."""
    cause = cause_of(error)
    if isinstance(cause, ssl.SSLError):
        return reason_of(cause)
    return strerror(cause) if isinstance(cause, OSError) else str(cause) or "it left"
