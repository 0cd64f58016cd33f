"""TLS of a listener from files: what they must be, the context they become, and the name in a client's certificate.

A context is made anew whenever the files change, and serves the handshakes from then on: so a certificate authority that was taken
away is gone, which the live context could not forget, and nobody who is connected notices.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from broker.net.transport import strerror

Identity = Literal["none", "cn", "san"]

_SAN_ORDER: Final = ("DNS", "URI", "email", "IP Address")
_REASONS: Final = {"WRONG_VERSION_NUMBER": "the other end does not speak TLS", "HTTP_REQUEST": "the other end speaks HTTP, not TLS"}


class TlsFiles(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """certificate: the chain, PEM, the server's own first; key: of the first, without a passphrase, by default in the same file. client_ca:
    who may sign clients' certificates; without it none is asked for. require_certificate: no handshake without one. identity: the user name
    comes from the certificate, and no password is asked for: cn = Common Name, san = the first Subject Alternative Name (DNS, URI, email, IP).
    """

    certificate: str
    key: str | None = None
    client_ca: str | None = None
    require_certificate: bool = False
    identity: Identity = "none"

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


def make_context(files: TlsFiles, protocol: str = "mqtt") -> ssl.SSLContext:
    """TLS 1.2 and 1.3. ValueError says "key: what was expected"."""
    fault = files_fault(files)
    if fault is not None:
        raise ValueError(fault)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # A client that offers neither is served all the same: many offer nothing.
    context.set_alpn_protocols(["mqtt"] if protocol == "mqtt" else ["http/1.1"])
    try:
        # A passphrase would be asked for at the terminal, from inside the event loop.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        raise ValueError(_chain_fault(files, error)) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError:
            raise ValueError(f"client_ca: expected certificates (PEM) in {files.client_ca}") from None
        context.verify_mode = ssl.CERT_REQUIRED if files.require_certificate else ssl.CERT_OPTIONAL
    return context


def files_fault(files: TlsFiles) -> str | None:
    """What can be said before OpenSSL is asked, which names no file."""
    if files.require_certificate and files.client_ca is None:
        return "client_ca: is missing; require_certificate needs to know who may have signed"
    if files.identity != "none" and not files.require_certificate:
        return "require_certificate: expected true; identity takes the user name from the client's certificate"
    for name in ("certificate", "key", "client_ca"):
        path = getattr(files, name)
        if path is not None:
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                return f"{name}: {path} cannot be read: {os.strerror(error.errno or 0).lower()}"
    return None


def _chain_fault(files: TlsFiles, error: ssl.SSLError) -> str:
    key = files.key or files.certificate
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"key: {key} does not belong to the certificate {files.certificate}"
    if not error.reason or "DECRYPT" in error.reason:
        return f"key: {key} has a passphrase, or is no private key (PEM); expected one without"
    return f"certificate: expected a certificate chain and its key (PEM) in {files.certificate}{' and ' + files.key if files.key else ''}"


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
    reason = error.reason or str(error)
    return _REASONS.get(reason) or reason.lower().replace("_", " ")


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
