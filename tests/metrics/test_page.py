"""The page: its numbers are those of `statistics()`, read back by prometheus-client's own parsers; and it is there until clients are gone."""

from __future__ import annotations

import importlib.util
import logging
import platform
import re
import socket
import ssl
import sys
import threading
from pathlib import Path

import pytest
import trio
import trustme
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from trio.testing import wait_all_tasks_blocked

import broker
from broker import Bridge, BridgeTopic
from broker.bridge.bridges import Bridges
from broker.config import Config
from broker.core.saved import Changes
from broker.errors import ConfigError, ListenError, StoreError
from broker.hub import Broker
from broker.metrics.page import _Process
from broker.metrics.table import NUMBERS, REASONS
from broker.net import committer
from broker.net.authentication import ConnectRequest
from broker.net.listener import PAGE_CONNECTIONS_MAX, Listener
from broker.net.unix import HAS_UNIX
from broker.opening import open_broker
from broker.reasons import ReasonCode
from broker.store.sqlite import SqliteStore
from broker.wire.packets import Disconnect, Publish
from tests.metrics.visitor import Visitor, asked, page_of, samples_of, visit
from tests.net.mqtt import Client
from tests.systems import unix_only

LISTENERS = ("mqtt://127.0.0.1:0", "http://127.0.0.1:0")


async def dialled(hub: Broker) -> Client:
    host, _, port = hub.urls[0].removeprefix("mqtt://").rpartition(":")
    return Client(await trio.open_tcp_stream(host, int(port)))


# ---- the numbers ---------------------------------------------------------------------------------------------------------


async def test_its_numbers_are_those_of_statistics(tmp_path: Path) -> None:
    async with open_broker(listeners=LISTENERS, store=tmp_path / "store", queue_count_max=2, retain_available=True) as hub:
        client, away = await dialled(hub), await dialled(hub)
        async with client.stream:
            async with away.stream:
                await away.connect("away", session_expiry_s=1000)
                await away.subscribe("a/#", 1)
                await away.send(Disconnect())
                assert await away.receive() is None
            await client.connect("here")
            await client.subscribe("b", 0)
            for size in range(5):
                await hub.publish("a/b", b"x" * size, qos=1)
            await hub.publish("kept", b"x" * 1000, qos=1, retain=True)
            await client.send(Publish("b", b"hello"))
            assert isinstance(await client.receive(), Publish)
            found = (await asked(hub, "/metrics")).samples
            statistics = hub.statistics()
        for number in NUMBERS:
            if number.name is not None and number.key not in ("links_count", "deadlines_count"):
                label = "" if number.label is None else '{{{}="{}"}}'.format(*number.label)
                name = f"{number.family}{'_total' if number.kind == 'counter' else ''}{label}"
                assert found[name] == statistics.get(number.key, 0), name
        assert found["mqtt_broker_clients_connected"] == 1
        assert found["mqtt_broker_sessions"] == 2
        assert found["mqtt_broker_publish_sent_total"] == found["mqtt_broker_publish_received_total"] == 1
        assert found['mqtt_broker_messages_dropped_total{reason="queue-full"}'] == 3
        assert found["mqtt_broker_queued_messages"] == 2
        assert found["mqtt_broker_retained_messages"] == 1
        assert found["mqtt_broker_store_writes_total"] > 0
        assert found["mqtt_broker_store_behind_seconds"] == 0

        def summed(family: str) -> float:
            return sum(value for name, value in found.items() if name.startswith(family + "{"))

        assert summed("mqtt_broker_memory_bytes") == statistics["memory_bytes"] > 1000
        assert summed("mqtt_broker_messages_dropped_total") == statistics["publish_dropped"]
        assert summed("mqtt_broker_connections_refused_total") == statistics["refused_connections_count"]


async def test_who_came_and_was_refused_and_was_lost() -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        return None if request.username == "bad" else request.username

    async with open_broker(listeners=LISTENERS, authenticate=authenticate) as hub:
        good, lost, bad, silent, babbler = [await dialled(hub) for _ in range(5)]
        await good.connect("good", username="ann")
        await lost.connect("lost", username="ben")
        assert (await bad.connect("bad", username="bad")).reason is ReasonCode.BAD_USER_NAME_OR_PASSWORD
        await good.send(Disconnect())
        await babbler.stream.send_all(b"\xf0\x00 is no CONNECT")
        for client in (silent, lost):
            await client.stream.aclose()
        for client in (good, bad, babbler):
            assert await client.receive() is None
            await client.stream.aclose()
        while hub.statistics()["connections_open_count"]:
            await trio.lowlevel.checkpoint()
        found = (await asked(hub, "/metrics")).samples
    assert found["mqtt_broker_connects_total"] == 2
    assert found["mqtt_broker_clients_lost_total"] == 1
    assert found["mqtt_broker_protocol_violations_total"] == 1
    refused = {name: value for name, value in found.items() if name.startswith("mqtt_broker_connects_refused_total") and value}
    assert refused == {
        'mqtt_broker_connects_refused_total{reason="bad-user-name-or-password"}': 1,
        'mqtt_broker_connects_refused_total{reason="no-connect"}': 2,
    }


async def test_what_never_happened_is_there_as_zero_and_without_a_store_nothing_of_one() -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        found = (await asked(hub, "/metrics")).samples
    assert [found[f'mqtt_broker_messages_dropped_total{{reason="{reason}"}}'] for reason in REASONS] == [0] * len(REASONS)
    assert not [name for name in found if "store" in name]


async def test_a_disk_that_hangs_or_refuses_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, refuses = threading.Event(), True
    write = SqliteStore.write

    def slowly(store: SqliteStore, changes: Changes) -> None:
        assert turns.wait(30)
        if refuses:
            raise StoreError(store.path, "is full")
        write(store, changes)

    monkeypatch.setattr(SqliteStore, "write", slowly)
    monkeypatch.setattr(committer, "RETRY_S", 0.001)
    async with open_broker(listeners=LISTENERS, store=tmp_path / "store") as hub, trio.open_nursery() as nursery:
        visitor = await visit(hub)

        async def seen(name: str) -> dict[str, float]:
            while not (found := (await visitor.ask("/metrics")).samples)[f"mqtt_broker_store_{name}"]:
                pass
            return found

        async def publish(topic: str) -> None:
            await hub.publish(topic, "x", retain=True)

        nursery.start_soon(publish, "a")
        await seen("behind_seconds")
        nursery.start_soon(publish, "b")
        found = await seen("changes_waiting")
        assert found["mqtt_broker_store_write_errors_total"] == found["mqtt_broker_store_writes_total"] == 0
        turns.set()
        await seen("write_errors_total")
        assert (await visitor.ask("/health")).status == 200
        refuses = False
        found = await seen("writes_total")
        assert found["mqtt_broker_store_write_seconds_total"] > 0
        await visitor.stream.aclose()
        turns.set()


async def test_it_says_which_broker_it_is_and_what_the_process_takes() -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        found = (await asked(hub, "/metrics")).samples
    compiled = "yes" if broker.compiled else "no"
    labels = f'compiled="{compiled}",python="{platform.python_version()}",version="{broker.__version__}"'
    assert found[f"mqtt_broker_build_info{{{labels}}}"] == 1
    assert found["mqtt_broker_start_time_seconds"] > 1_700_000_000
    assert found["mqtt_broker_event_loop_turn_seconds"] >= 0
    if platform.system() == "Linux":
        assert found["process_open_fds"] > 3
        assert found["process_resident_memory_bytes"] > 1_000_000
        assert found["process_cpu_seconds_total"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_the_process_is_seen_where_proc_shows_nothing_else(tmp_path: Path) -> None:
    """As with ProcSubset=pid of systemd."""
    (tmp_path / "self").symlink_to("/proc/self")

    def seen(proc: str) -> dict[str, float]:
        return {family.name: family.samples[0].value for family in _Process(proc=proc, registry=None).collect()}

    hidden, shown = seen(str(tmp_path)), seen("/proc")
    assert hidden.keys() == shown.keys() >= {"process_open_fds", "process_cpu_seconds", "process_start_time_seconds"}
    assert hidden["process_start_time_seconds"] == pytest.approx(shown["process_start_time_seconds"], abs=5)


async def test_two_brokers_in_one_process_tell_each_of_themselves() -> None:
    async with open_broker(listeners=LISTENERS) as one, open_broker(listeners=LISTENERS) as other:
        client = await dialled(one)
        async with client.stream:
            await client.connect("a")
            found = [(await asked(hub, "/metrics")).samples["mqtt_broker_clients_connected"] for hub in (one, other)]
    assert found == [1, 0]


async def test_each_bridge_is_told_by_its_name() -> None:
    async with open_broker(packet_bytes_max=1000) as far:
        bridge = Bridge(name="cloud", url=far, topics=[BridgeTopic(filter="a/#")])
        async with open_broker(listeners=["http://127.0.0.1:0"], bridges=[bridge]) as near, far.subscribe("a/#") as there:
            while not near.bridges[0].connected:
                await trio.lowlevel.checkpoint()
            for size in (2000, 10, 20):
                await near.publish("a/b", b"x" * size, qos=1)
            for _ in range(2):
                await there.receive()
            while near.bridges[0].out_count < 2:
                await trio.lowlevel.checkpoint()
            found = {name: value for name, value in (await asked(near, "/metrics")).samples.items() if "bridge" in name}
    assert found == {
        'mqtt_broker_bridge_connected{bridge="cloud"}': 1,
        'mqtt_broker_bridge_messages_total{bridge="cloud",direction="in"}': 0,
        'mqtt_broker_bridge_messages_total{bridge="cloud",direction="out"}': 2,
        'mqtt_broker_bridge_timeouts_total{bridge="cloud"}': 0,
        'mqtt_broker_bridge_messages_dropped_total{bridge="cloud",reason="too-large"}': 1,
    }


async def test_it_names_nobody(tmp_path: Path) -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        client = await dialled(hub)
        async with client.stream:
            await client.connect("secret-client", username="secret-user")
            await client.subscribe("secret/topic")
            await client.send(Publish("secret/topic", b"secret"))
            assert isinstance(await client.receive(), Publish)
            page = (await asked(hub, "/metrics")).text
    assert "secret" not in page
    assert "127.0.0.1" not in page


# ---- HTTP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        # Prometheus 2.4x and 3.x
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
         "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
         "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text; version=nonsense", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=2.\xe9", "application/openmetrics-text; version="),
    ],
)  # fmt: skip
async def test_the_format_is_the_one_that_is_asked_for(accept: str | None, content_type: str) -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        reply = await asked(hub, "/metrics", headers=None if accept is None else {"Accept": accept.encode("latin-1")})  # type: ignore[dict-item]
    assert reply.status == 200
    assert reply.headers["content-type"].startswith(content_type)
    if content_type.startswith("application"):
        families = {family.name: family for family in open_metrics_families(reply.text)}  # type: ignore[no-untyped-call]
        assert reply.text.endswith("# EOF\n")
        assert families["mqtt_broker_received_bytes"].type == "counter"
        assert families["mqtt_broker_received_bytes"].unit == "bytes"
        assert families["mqtt_broker_build"].type == "info"
    else:
        assert "mqtt_broker_received_bytes_total" in samples_of(reply.text)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/health", 200, "ok\n"),
        ("GET", "/health?verbose=1", 200, "ok\n"),
        ("HEAD", "/health", 200, ""),
        ("HEAD", "/metrics", 200, ""),
        ("GET", "/", 404, "there are /metrics and /health here\n"),
        ("GET", "/metrics/", 404, "there are /metrics and /health here\n"),
        ("POST", "/", 404, "there are /metrics and /health here\n"),
        ("POST", "/metrics", 405, "only GET and HEAD are served here\n"),
        ("OPTIONS", "/health", 405, "only GET and HEAD are served here\n"),
    ],
)
async def test_what_there_is(method: str, path: str, status: int, text: str) -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        reply = await asked(hub, path, method)
        assert (reply.status, reply.text) == (status, text)
        assert ("allow" in reply.headers) == (status == 405)


async def test_a_web_socket_is_not_made_of_it() -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        reply = await asked(hub, "/health", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert reply.status == 200


async def test_so_many_at_a_time_and_more_are_closed_at_once() -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        visitors = [await visit(hub) for _ in range(PAGE_CONNECTIONS_MAX)]
        for visitor in visitors:
            assert (await visitor.ask("/health")).status == 200
        late = await visit(hub)
        async with late.stream:
            assert await late.rest() == b""
        assert (await visitors[0].ask("/metrics")).samples['mqtt_broker_connections_refused_total{reason="listener-full"}'] == 1
        for visitor in visitors:
            await visitor.stream.aclose()
        while any(one.connections_count for one in hub._server.bound):
            await trio.lowlevel.checkpoint()
        assert (await asked(hub, "/health")).status == 200


# ---- its end -------------------------------------------------------------------------------------------------------------


async def test_health_says_that_it_ends_and_clients_are_told_goodbye_under_the_eyes_of_the_page() -> None:
    async with open_broker(listeners=LISTENERS) as hub, trio.open_nursery() as nursery:
        client, visitor = await dialled(hub), await visit(hub)
        await client.connect("a")
        assert (await visitor.ask("/health")).status == 200
        nursery.start_soon(hub.shutdown, 1000)
        assert isinstance(await client.receive(), Disconnect)  # and it stays, to read what it is sent
        reply = await visitor.ask("/health")
        assert (reply.status, reply.text) == (503, "shutting down\n")
        assert (await asked(hub, "/health")).status == 503
        assert (await asked(hub, "/metrics")).samples["mqtt_broker_connections_open"] == 1
        await client.stream.aclose()
        assert await visitor.rest() == b""
        await visitor.stream.aclose()
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*page_of(hub))


@pytest.mark.parametrize("how", ["shutdown", "left"])
async def test_health_says_so_while_bridges_end_too(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    async def end(bridges: Bridges, grace_s: float) -> None:
        found.append((await asked(hub, "/health")).status)

    monkeypatch.setattr(Bridges, "end", end)
    async with open_broker(listeners=LISTENERS) as hub:
        assert (await asked(hub, "/health")).status == 200
        if how == "shutdown":
            await hub.shutdown()
            monkeypatch.undo()
    assert found == [503]


@pytest.mark.parametrize("said", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_visitor_does_not_hold_up_the_end(said: bytes) -> None:
    """Whether it is silent, or in the middle of a request."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with open_broker(Config(shutdown_grace_s=1000), listeners=LISTENERS) as hub:
        visitor = await visit(hub)
        if said:
            await visitor.stream.send_all(said)
        await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    await visitor.stream.aclose()


# ---- where it listens ----------------------------------------------------------------------------------------------------


@unix_only
async def test_a_unix_socket_is_a_door_too(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    async with open_broker(listeners=[Listener(protocol="http", unix=str(path))]) as hub:
        assert hub.urls == (f"unix://{path}",)
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            await stream.send_all(b"GET /health HTTP/1.0\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert not path.exists()


async def test_a_socket_that_listens_already_is_a_door_too() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    async with open_broker(listeners=[Listener(protocol="http", descriptor=listening.detach())]) as hub:
        assert (await asked(hub, "/health")).status == 200


async def test_a_port_that_is_taken_is_told_as_for_others() -> None:
    async with open_broker(listeners=LISTENERS) as hub:
        with pytest.raises(ListenError, match="another program is listening there"):
            async with open_broker(listeners=[hub.urls[1]]):
                pytest.fail("entered")


TO_ALL = Listener(protocol="http", host="0.0.0.0", port=0)


@pytest.mark.parametrize("config", [None, Config(allow_anonymous=True)], ids=["nothing said", "everybody may in for MQTT"])
async def test_nobody_opens_it_to_the_world_by_forgetting_something(config: Config | None) -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        return "ann"

    for hook in (None, authenticate):
        with pytest.raises(ConfigError, match=re.escape("can be reached from other machines: its page asks nobody for a password")):
            async with open_broker(config, listeners=[TO_ALL], authenticate=hook):
                pytest.fail("entered")


async def test_it_is_open_to_the_world_where_that_is_written_down() -> None:
    async with open_broker(listeners=[Listener(protocol="http", host="0.0.0.0", port=0, allow_anonymous=True)]) as hub:
        assert (await asked(hub, "/health")).status == 200


async def test_on_this_machine_nothing_has_to_be_written_whoever_may_in_for_mqtt() -> None:
    async with open_broker(Config(allow_anonymous=False), listeners=["http://127.0.0.1:0"]) as hub:
        assert (await asked(hub, "/health")).status == 200


async def test_a_reload_is_as_for_other_listeners() -> None:
    page = {"protocol": "http", "port": 0, "connections_count_max": 1}
    mqtt = {"port": 0}
    async with open_broker(Config.from_dict({"listeners": [mqtt, page]})) as hub:
        first, second = await visit(hub), await visit(hub)
        assert (await first.ask("/health")).status == 200
        assert await second.rest() == b""
        assert hub.reload(Config.from_dict({"listeners": [mqtt, page | {"connections_count_max": 2}]})) == []
        third = await visit(hub)
        assert (await third.ask("/health")).status == 200
        assert hub.reload(Config.from_dict({"listeners": [mqtt]})) == ["listeners"]
        assert (await third.ask("/health")).status == 200
        with pytest.raises(ConfigError, match="allow_anonymous = false, and no authentication is configured: nobody could come in"):
            hub.reload(Config.from_dict({"listeners": [mqtt, page | {"allow_anonymous": False}]}))
        for visitor in (first, second, third):
            await visitor.stream.aclose()


# ---- TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    return authority


async def test_over_tls_a_certificate_may_be_the_password(tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tls = {"certificate": "server.pem", "client_ca": "ca.pem", "require_certificate": True}
    lines = "".join(f"{key} = {value!r}\n" for key, value in tls.items()).replace("True", "true")
    (tmp_path / "broker.toml").write_text(f'[[listeners]]\nprotocol = "http"\nhost = "0.0.0.0"\nport = 0\n[listeners.tls]\n{lines}')
    async with open_broker(Config.load(tmp_path / "broker.toml", env={})) as hub:
        assert hub.urls[0].startswith("https://0.0.0.0:")
        context = ssl.create_default_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        authority.configure_trust(context)
        authority.issue_cert("prometheus@example.org").configure_cert(context)
        context.set_alpn_protocols(["http/1.1"])
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", page_of(hub)[1]), context, server_hostname="localhost", https_compatible=True)
        async with stream:
            reply = await Visitor(stream).ask("/metrics")
            assert "mqtt_broker_sessions" in reply.samples
            assert stream.selected_alpn_protocol() == "http/1.1"
        stranger = await trio.open_tcp_stream("127.0.0.1", page_of(hub)[1])
        async with stranger:
            await stranger.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1" not in await Visitor(stranger).rest()
    assert [line for line in caplog.messages if "TLS handshake failed" in line]


# ---- the config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"mount_point": "a/"}, 'listeners[0].mount_point: means nothing with protocol = "http", where no MQTT is spoken'),
        ({"path": "/x"}, 'listeners[0].path: means nothing with protocol = "http", where no MQTT is spoken'),
        ({"client_ids": ["a"]}, 'listeners[0].client_ids: means nothing with protocol = "http", where no MQTT is spoken'),
        ({"limits": {"packet_bytes_max": 1000}}, 'listeners[0].limits: means nothing with protocol = "http", where no MQTT is spoken'),
        ({"origins": ["*"]}, 'listeners[0].origins: means nothing with protocol = "http", where no MQTT is spoken'),
        ({"proxy_protocol_from": ["unix"]}, 'listeners[0].proxy_protocol_from: means nothing with protocol = "http", where no MQTT is spoken'),
        ({"metrics": True}, "listeners[0].metrics: unknown key"),
    ],
)
def test_keys_that_are_about_mqtt(keys: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"listeners": [{"protocol": "http", "port": 9883} | keys]})
    assert expected in str(caught.value)


def test_it_needs_a_port_of_its_own() -> None:
    with pytest.raises(
        ConfigError, match=re.escape('listeners[0].port: is missing: protocol = "http" needs a port that is not MQTT\'s, such as 9883')
    ):
        Config.from_dict({"listeners": [{"protocol": "http"}]})
    assert Config.from_dict({"listeners": [{"protocol": "http", "systemd": "page"}]})
    if HAS_UNIX:
        assert Config.from_dict({"listeners": [{"protocol": "http", "unix": "/run/page.sock"}]})


async def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "prometheus_client" else real(name))
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"listeners": [{"protocol": "http", "port": 9883}]})
    assert str(caught.value).endswith("listeners[0].protocol: http needs an extra that is not installed: pip install 'trio-mqtt-broker[metrics]'")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "broker.metrics.page", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'trio-mqtt-broker\[metrics\]'"):
        async with open_broker(listeners=["http://127.0.0.1:0"]):
            pytest.fail("entered")
