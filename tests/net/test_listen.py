"""Listening: real ports, both families, Unix paths, and one clear line for everything that can go wrong."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Literal

import pytest
import trio

from broker import connect, open_broker
from broker.errors import ConfigError, ListenError
from broker.net import listen
from broker.net.bound_socket import BoundSocket
from broker.net.listen import bind_all
from broker.net.listener import Listener
from tests.systems import unix_only


def close(bound: list[BoundSocket]) -> None:
    for one in bound:
        one.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_port_0_is_a_real_port() -> None:
    bound = await bind_all([Listener(port=0)])
    try:
        (one,) = bound
        assert one.url == f"mqtt://127.0.0.1:{one.socket.getsockname()[1]}"
        with socket.create_connection(one.socket.getsockname()):
            pass
    finally:
        close(bound)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("host", "hosts"), [("localhost", ("127.0.0.1", "[::1]")), ("*", ("0.0.0.0", "[::]"))])
async def test_port_0_is_the_same_on_both_families(host: str, hosts: tuple[str, str]) -> None:
    bound = await bind_all([Listener(host=host, port=0)])
    try:
        port = bound[0].socket.getsockname()[1]
        assert [one.url for one in bound] == [f"mqtt://{name}:{port}" for name in hosts]
    finally:
        close(bound)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_port_0_tries_again_when_the_second_family_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = listen._listen_tcp
    refused: list[int] = []
    opened: list[BoundSocket] = []

    def listen_tcp(listener: Listener, family: int, host: str, port: int) -> BoundSocket:
        if family == socket.AF_INET6 and len(refused) < 2:
            refused.append(port)
            raise OSError(errno.EADDRINUSE, "in use")
        opened.append(real(listener, family, host, port))
        return opened[-1]

    monkeypatch.setattr(listen, "_listen_tcp", listen_tcp)
    bound = await bind_all([Listener(host="localhost", port=0)])
    try:
        assert len(bound) == 2
        assert len(refused) == 2
        assert [one.socket.fileno() >= 0 for one in opened] == [False, False, True, True]
    finally:
        close(bound)


async def test_address_in_use_says_which_and_what_to_do() -> None:
    bound = await bind_all([Listener(port=0)])
    port = bound[0].socket.getsockname()[1]
    try:
        with pytest.raises(ListenError) as caught:
            await bind_all([Listener(port=port)])
        assert caught.value.address == f"127.0.0.1:{port}"
        assert str(caught.value) == (
            f"cannot listen on 127.0.0.1:{port}: another program is listening there; stop it, or choose another port (0 is a free one)"
        )
    finally:
        close(bound)


async def test_all_or_none() -> None:
    taken = await bind_all([Listener(port=0)])
    port = taken[0].socket.getsockname()[1]
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    try:
        with pytest.raises(ListenError):
            await bind_all([Listener(port=0), Listener(port=port)])
        if before:
            assert set(os.listdir("/proc/self/fd")) == before
    finally:
        close(taken)


async def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0: this machine has no address 192\.0\.2\.1"):
        await bind_all([Listener(host="192.0.2.1", port=0)])


async def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: object, **options: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ListenError, match="no address is known for 'nowhere.invalid'"):
        await bind_all([Listener(host="nowhere.invalid", port=0)])


def test_permission_denied_names_the_port() -> None:
    error = listen._explain(PermissionError(errno.EACCES, "no"), "127.0.0.1:80", "127.0.0.1", 80)
    said = "another program has it for itself, or Windows keeps it back" if sys.platform == "win32" else "ports below 1024 belong to root"
    assert said in str(error)
    assert str(error).endswith(("choose another port, such as 1883", "choose another port"))


async def test_options_reach_the_socket() -> None:
    bound = await bind_all([Listener(port=0, receive_buffer_bytes=8192, send_buffer_bytes=8192)])
    try:
        listening = bound[0].socket
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (8192, 16_384)  # Linux doubles it
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) in (8192, 16_384)
    finally:
        close(bound)


@pytest.mark.parametrize("path", ["", "mqtt", "/a b", "/a?b", "/a#b", "/ä"])
async def test_a_path_that_no_client_could_ask_for(path: str) -> None:
    with pytest.raises(ConfigError, match="path: expected the path of a URL"):
        await bind_all([Listener(port=0, protocol="websocket", path=path)])


async def test_a_socket_listener_becomes_ours() -> None:
    (given,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = given.socket.getsockname()[1]
    bound = await bind_all([given])
    try:
        assert bound[0].url == f"mqtt://127.0.0.1:{port}"
    finally:
        close(bound)


# ---- Unix ----------------------------------------------------------------------------------------------------------------


@unix_only
async def test_unix_path_lives_as_long_as_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    bound = await bind_all([Listener(unix=str(path), unix_mode="0600")])
    assert bound[0].url == f"unix://{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    close(bound)
    assert not path.exists()


@unix_only
async def test_unix_and_a_port_are_two_listeners(tmp_path: Path) -> None:
    for fields, keys in (({"port": 1884}, ["port"]), ({"host": "::1", "port": 0}, ["host", "port"])):
        with pytest.raises(ConfigError) as caught:
            await bind_all([Listener(unix=str(tmp_path / "s"), **fields)])
        assert [problem.partition(":")[0] for _, problem in caught.value.problems] == keys


@unix_only
async def test_a_stale_unix_path_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert path.exists()
    bound = await bind_all([Listener(unix=str(path))])
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
    close(bound)


@unix_only
async def test_the_same_address_asked_for_twice_is_nobody_elses_fault(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    twice = [Listener(host="localhost", port=port), Listener(port=port)]
    for listeners, address in ((twice, f"127.0.0.1:{port}"), ([Listener(unix=str(tmp_path / "s"))] * 2, f"unix://{tmp_path / 's'}")):
        with pytest.raises(ListenError, match="two of the listeners asked for are this one") as caught:
            await bind_all(listeners)
        assert caught.value.address == address
    assert not (tmp_path / "s").exists()


@unix_only
async def test_a_live_unix_path_is_in_use_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    bound = await bind_all([Listener(unix=str(path))])
    with pytest.raises(ListenError, match="another program is listening there; stop it, or choose another path$"):
        await bind_all([Listener(unix=str(path))])
    assert path.exists()
    close(bound)


@unix_only
async def test_somebody_elses_unix_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    bound = await bind_all([Listener(unix=str(path))])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        close(bound)
        assert path.exists()


@unix_only
async def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("x")
    with pytest.raises(ListenError, match="a file that is not a socket is there"):
        await bind_all([Listener(unix=str(path))])
    assert path.read_text() == "x"


@unix_only
async def test_unix_path_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"there is no directory .*/nowhere; make it"):
        await bind_all([Listener(unix=str(tmp_path / "nowhere" / "mqtt.sock"))])


async def test_unix_path_without_permission() -> None:
    error = listen._explain(PermissionError(errno.EACCES, "no"), "unix:///root/mqtt.sock", "/root/mqtt.sock", -1)
    assert str(error) == "cannot listen on unix:///root/mqtt.sock: permission denied; /root must be writable for this user, or choose another path"


@unix_only
async def test_too_long_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than"):
        await bind_all([Listener(unix=str(tmp_path / ("x" * 200)))])


# ---- a socket that was opened before ---------------------------------------------------------------------------------------


@unix_only
async def test_a_descriptor_says_itself_where_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "s"
    given = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen()
    port = given.getsockname()[1]
    wrong = Listener(descriptor=given.detach(), host="192.0.2.1", port=5)
    async with open_broker(listeners=[wrong, Listener(descriptor=unix.detach(), protocol="websocket")]) as hub:
        assert hub.urls == (f"mqtt://127.0.0.1:{port}", f"unix://{path}")
        async with connect(hub.urls[0]) as client:
            await client.publish("a", b"x", qos=1)
    assert path.exists()  # whoever opened it may hand it to the next one


@unix_only
async def test_a_place_says_what_is_spoken_there_where_its_url_does_not(tmp_path: Path) -> None:
    protocols: tuple[Literal["mqtt", "websocket", "http", "control"], ...] = ("mqtt", "websocket", "http", "control")
    wanted = [Listener(unix=str(tmp_path / protocol), protocol=protocol) for protocol in protocols]
    wanted += [Listener(port=0, protocol=protocol) for protocol in protocols[:3]]
    async with open_broker(listeners=wanted) as hub:
        own = f"unix://{tmp_path}"
        assert hub.places[:4] == (f"{own}/mqtt", f"{own}/websocket (websocket)", f"{own}/http (http)", f"{own}/control (control)")
        assert hub.places[4:] == hub.urls[4:]
        assert [url.partition("://")[0] for url in hub.urls[4:]] == ["mqtt", "ws", "http"]


@unix_only
async def test_a_descriptor_opens_nothing_by_an_oversight() -> None:
    """What its Listener says of its address is not believed."""
    with socket.create_server(("0.0.0.0", 0)) as given, pytest.raises(ConfigError, match="can be reached from other machines"):
        async with open_broker(listeners=[Listener(descriptor=given.fileno(), host="127.0.0.1")]):
            pass


@unix_only
async def test_a_descriptor_that_is_none_to_listen_on() -> None:
    with socket.socket() as silent:
        for number in (silent.fileno(), 10_000):
            with pytest.raises(ConfigError, match=r"listeners\[0\]\.descriptor: "):
                async with open_broker(listeners=[Listener(descriptor=number)]):
                    pass


async def test_systemd_hands_over_to_the_command_only() -> None:
    with pytest.raises(ListenError, match="only `broker serve` takes sockets from systemd"):
        await bind_all([Listener(systemd="mqtt")])
