"""Over every transport that `connect` has, with real sockets and real certificates."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from broker import Bridge, BridgeTls, BridgeTopic, Config, Listener, TlsFiles, connect, open_broker
from broker.auth.hashes import hash_password
from tests.bridge.houses import listening, take, wait_cause, wait_state
from tests.systems import unix_only

TOPICS = (BridgeTopic(filter="#", direction="both", qos=1),)


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.server = str(folder / "server.pem")
        self.client = str(folder / "client.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        self.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(self.server)
        self.authority.issue_cert("house@example.org", common_name="house").private_key_and_cert_chain_pem.write_to_path(self.client)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def bridge(url: str, **options: Any) -> Bridge:
    return Bridge(name="b", url=url.replace("127.0.0.1", "localhost"), client_id="near", topics=TOPICS, **options)


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss", pytest.param("unix", marks=unix_only)])
async def test_over(scheme: str, certificates: Certificates, tmp_path: Path) -> None:
    secure = scheme in ("mqtts", "wss")
    listener = Listener(
        **({"unix": str(tmp_path / "far.sock")} if scheme == "unix" else {"port": 0}),
        protocol="websocket" if scheme.startswith("ws") else "mqtt",
        tls=TlsFiles(certificate=certificates.server, client_ca=certificates.ca, require_certificate=True, identity="cn") if secure else None,
    )
    tls = BridgeTls(ca=certificates.ca, certificate=certificates.client) if secure else None
    async with open_broker(listeners=[listener]) as far, open_broker(bridges=[bridge(far.urls[0], tls=tls)]) as near:
        await wait_state(near)
        async with listening(near) as here, listening(far) as there, connect(near) as one, connect(far) as other:
            await one.publish("a", "out", qos=1)
            assert await take(there, 1) == await take(here, 1) == [("a", "out")]
            await other.publish("b", "in", qos=1)
            assert await take(there, 1) == await take(here, 1) == [("b", "in")]
        assert [client.username for client in far.clients() if client.client_id == "near"] == ["house" if secure else None]


async def test_a_password_is_proven_and_a_new_one_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SCRAM: the newest password of the file for each connection, and no word of it in any log."""
    users, secret = tmp_path / "users", tmp_path / "secret"

    def write(password: str, known: str) -> None:
        users.write_text(f"house:{hash_password(known.encode(), 'scram-sha-256', 4096).text}\n")
        secret.write_text(f"{password}\n")

    caplog.set_level(logging.DEBUG)
    write("first-secret", "first-secret")
    config = Config.from_dict({"password_file": str(users), "listeners": [{"port": 0}]})
    async with open_broker(config) as far:
        one = Bridge(
            name="b", url=far.urls[0], client_id="near", topics=TOPICS, username="house", password_file=str(secret), auth_method="SCRAM-SHA-256"
        )
        async with open_broker(bridges=[one]) as near:
            await wait_state(near)
            assert [client.username for client in far.clients() if client.client_id == "near"] == ["house"]
            write("other-secret", "other-secret")
            far.reload(config)
            far.drop_clients()
            await wait_state(near, b"0")
            await wait_state(near)
            write("caf\u00e9\u0007", "other-secret")  # a control character, which SASLprep forbids
            far.drop_clients()
            await wait_cause(near, "password_file cannot be used with SCRAM-SHA-256")
    assert "-secret" not in caplog.text


async def test_whom_it_does_not_trust_it_does_not_talk_to(certificates: Certificates, tmp_path: Path) -> None:
    stranger = str(tmp_path / "stranger.pem")
    trustme.CA().cert_pem.write_to_path(stranger)
    listener = Listener(port=0, tls=TlsFiles(certificate=certificates.server))
    async with open_broker(listeners=[listener]) as far:
        for url, ca, words in ((bridge(far.urls[0]).url, stranger, "certificate"), (far.urls[0], certificates.ca, "certificate")):
            one = Bridge(name="b", url=url, client_id="near", topics=TOPICS, tls=BridgeTls(ca=ca))
            async with open_broker(bridges=[one]) as near:
                await wait_cause(near, words)
                assert not near.bridges[0].connected
        other = Bridge(name="b", url=far.urls[0], client_id="near", topics=TOPICS, tls=BridgeTls(ca=certificates.ca, check_hostname=False))
        async with open_broker(bridges=[other]) as near:
            await wait_state(near)


async def test_a_context_of_the_programs_own(certificates: Certificates) -> None:
    context = ssl.create_default_context()
    certificates.authority.configure_trust(context)
    listener = Listener(port=0, tls=TlsFiles(certificate=certificates.server))
    async with open_broker(listeners=[listener]) as far, open_broker(bridges=[bridge(far.urls[0], tls=context)]) as near:
        await wait_state(near)


async def test_new_certificates_are_taken_on_a_reload(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    """The bridge has not changed, and its files have: it begins anew. Where they are the same it does not."""
    caplog.set_level(logging.INFO)
    tls = TlsFiles(certificate=certificates.server, client_ca=certificates.ca, require_certificate=True, identity="cn")
    async with open_broker(listeners=[Listener(port=0, tls=tls)]) as far:
        table: dict[str, Any] = {"name": "b", "url": far.urls[0].replace("127.0.0.1", "localhost"), "topics": [{"filter": "#"}], "client_id": "near"}
        table["tls"] = {"ca": certificates.ca, "certificate": certificates.client}
        config = Config.from_dict({"bridges": [table], "listeners": [{"port": 0}]})
        async with open_broker(config) as near:
            await wait_state(near)
            near.reload(config)
            await trio.lowlevel.checkpoint()
            assert "begins anew" not in caplog.text
            other = certificates.authority.issue_cert("other@example.org", common_name="other")
            other.private_key_and_cert_chain_pem.write_to_path(certificates.client)
            near.reload(config)
            assert "begins anew" in caplog.text
            async with near.subscribe("$SYS/broker/connection/b/state") as states:
                while (await states.receive()).payload != b"0":
                    pass
                while (await states.receive()).payload != b"1":
                    pass
            assert [client.username for client in far.clients() if client.client_id == "near"] == ["other"]
