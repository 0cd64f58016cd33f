"""SCRAM-SHA-256 over AUTH, at a broker's socket, with an independent client."""

from __future__ import annotations

from pathlib import Path

import pytest
import scramp  # type: ignore[import-untyped]
import trio

from broker import Broker, Config, Listener, open_broker
from broker.auth.hashes import hash_password
from broker.auth.throttle import Throttle
from broker.reasons import ReasonCode
from broker.wire.packets import Auth, ConnAck, Connect, Disconnect, Packet, Properties
from tests.net.mqtt import Client
from tests.net.test_locks import client_of

METHOD = "SCRAM-SHA-256"
NO = ReasonCode.NOT_AUTHORIZED


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "passwords"
    text = "".join(f"{name}:{hash_password(b'geheim', 'scram-sha-256', 4096).text}\n" for name in ("ann", "ben"))
    path.write_text(f"{text}old:{hash_password(b'geheim', iterations=5).text}\n")
    (tmp_path / "acl").write_text("user ann\ntopic a\n")
    return Config(listeners=(Listener(port=0),), password_file=str(path), acl_file=str(tmp_path / "acl"), sys_interval_s=0)


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.auth.throttle.DELAY_S_MIN", 0.0)


def properties(data: str | None) -> Properties:
    return Properties(authentication_method=METHOD, authentication_data=None if data is None else data.encode())


def data_of(packet: Packet | None) -> str:
    assert isinstance(packet, (Auth, ConnAck)), packet
    assert packet.properties.authentication_method == METHOD
    assert packet.properties.authentication_data is not None
    return packet.properties.authentication_data.decode()


async def come_in(client: Client, name: str, password: str, username: str | None = None) -> Packet | None:
    theirs = scramp.ScramClient([METHOD], name, password)
    await client.send(Connect("c1", 5, True, username=username, properties=properties(theirs.get_client_first())))
    theirs.set_server_first(data_of(await client.receive()))
    await client.send(Auth(ReasonCode.CONTINUE_AUTHENTICATION, properties(theirs.get_client_final())))
    answer = await client.receive()
    if isinstance(answer, ConnAck) and answer.reason == ReasonCode.SUCCESS:
        theirs.set_server_final(data_of(answer))  # raises if the broker does not know the password
    return answer


def name_of(hub: Broker) -> str | None:
    (one,) = hub.clients()
    return one.username


async def test_the_name_is_the_one_that_was_proven(config: Config) -> None:
    async with open_broker(config) as hub, client_of(hub) as client:
        answer = await come_in(client, "ann", "geheim", username="somebody else")
        assert isinstance(answer, ConnAck)
        assert answer.reason == ReasonCode.SUCCESS
        assert name_of(hub) == "ann"


@pytest.mark.parametrize(("name", "password"), [("ann", "waffle"), ("nobody", "geheim"), ("old", "geheim")])
async def test_who_does_not_prove_it_is_refused_at_the_end(config: Config, name: str, password: str) -> None:
    async with open_broker(config) as hub, client_of(hub) as client:
        answer = await come_in(client, name, password)
        assert isinstance(answer, ConnAck)
        assert answer.reason == NO
        assert await client.receive() is None
        assert hub.clients() == []


async def test_plain_passwords_stand_beside_it(config: Config) -> None:
    async with open_broker(config) as hub:
        for name in ("ann", "old"):
            async with client_of(hub) as client:
                await client.send(Connect("c1", 5, True, username=name, password=b"geheim"))
                answer = await client.receive()
                assert isinstance(answer, ConnAck)
                assert answer.reason == ReasonCode.SUCCESS


async def test_where_nobody_could_come_in_by_it_the_method_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"old:{hash_password(b'geheim', iterations=5).text}\n")
    async with open_broker(Config(listeners=(Listener(port=0),), password_file=str(path))) as hub, client_of(hub) as client:
        await client.send(Connect("c1", 5, True, properties=properties("n,,n=old,r=abc")))
        answer = await client.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == ReasonCode.BAD_AUTHENTICATION_METHOD


@pytest.mark.parametrize("data", [None, "", "p=tls-unique,,n=ann,r=abc", "n,,n=ann"])
async def test_what_is_no_scram_is_refused(config: Config, data: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "broker.auth")
    async with open_broker(config) as hub, client_of(hub) as client:
        await client.send(Connect("c1", 5, True, properties=properties(data)))
        answer = await client.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == NO
    assert sum("SCRAM failed for client 'c1'" in record.message for record in caplog.records) == 1


async def test_a_client_proves_itself_anew_and_as_nobody_else(config: Config) -> None:
    async with open_broker(config) as hub, client_of(hub) as client:
        assert isinstance(await come_in(client, "ann", "geheim"), ConnAck)
        for name in ("ann", "ben"):
            theirs = scramp.ScramClient([METHOD], name, "geheim")
            await client.send(Auth(ReasonCode.REAUTHENTICATE, properties(theirs.get_client_first())))
            theirs.set_server_first(data_of(await client.receive()))
            await client.send(Auth(ReasonCode.CONTINUE_AUTHENTICATION, properties(theirs.get_client_final())))
            answer = await client.receive()
            if name == "ann":
                assert isinstance(answer, Auth)
                assert answer.reason == ReasonCode.SUCCESS
                theirs.set_server_final(data_of(answer))
            else:
                assert isinstance(answer, Disconnect)
                assert answer.reason == NO


async def test_guesses_are_slowed_by_address(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def failed(self: Throttle, address: str, now: float) -> float:
        asked.append(address)
        return 0.0

    monkeypatch.setattr(Throttle, "failed", failed)
    async with open_broker(config) as hub:
        for name in ("ann", "nobody"):
            async with client_of(hub) as client:
                await come_in(client, name, "waffle")
        async with client_of(hub) as client:
            await come_in(client, "ann", "geheim")
    assert asked == ["127.0.0.1"] * 2


async def test_whoever_does_not_answer_has_the_time_of_connect(config: Config, autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker(config, listeners=[]) as hub, trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(hub.attach, theirs)
        client = Client(ours)
        await client.send(Connect("c1", 5, True, properties=properties("n,,n=ann,r=abc")))
        assert isinstance(await client.receive(), Auth)
        began = trio.current_time()
        answer = await client.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == NO
        assert trio.current_time() - began <= 10
        await ours.aclose()
