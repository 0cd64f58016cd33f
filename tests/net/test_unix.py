"""The path of a Unix socket: its owner and mode stand before anybody can connect, and what cannot be is said in a line."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import ConfigError, ListenError
from broker.net import unix
from broker.net.listen import bind_all
from broker.net.listener import Listener
from broker.net.unix import bind_unix, parse_owner

pwd = pytest.importorskip("pwd", reason="no Unix sockets")
grp = pytest.importorskip("grp", reason="no Unix sockets")

ME = pwd.getpwuid(os.getuid()).pw_name
MINE = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as one:
        yield one


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (ME, (os.getuid(), -1)),
        (f"{ME}:{MINE}", (os.getuid(), os.getgid())),
        (f":{MINE}", (-1, os.getgid())),
        ("12:34", (12, 34)),
        ("0", (0, -1)),
        (":0", (-1, 0)),
    ],
)
def test_owners(text: str, numbers: tuple[int, int]) -> None:
    assert parse_owner(text) == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'expected "user", "user:group" or ":group"'),
        (":", 'expected "user", "user:group" or ":group"'),
        ("a:b:c", 'expected "user", "user:group" or ":group"'),
        (f"{ME}:", 'expected "user", "user:group" or ":group"'),
        ("nobody-of-this-name", "this machine has no user 'nobody-of-this-name'"),
        (":nobodies-of-this-name", "this machine has no group 'nobodies-of-this-name'"),
        ("4294967295", "the number is too large"),
        ("-1", "this machine has no user '-1'"),
    ],
)
def test_owners_that_are_none(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        parse_owner(text)


async def test_an_unknown_owner_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"listeners\[0\]: unix_owner: this machine has no user 'nobody-of-this-name'"):
        await bind_all([Listener(unix=str(tmp_path / "s"), unix_owner="nobody-of-this-name")])
    with pytest.raises(ConfigError, match="unix_owner: means something only with unix"):
        await bind_all([Listener(unix_owner=ME)])


@pytest.mark.usefixtures("open_umask")
async def test_owner_and_mode_are_set(tmp_path: Path) -> None:
    owner = "12:34" if os.getuid() == 0 else f"{ME}:{MINE}"
    bound = await bind_all([Listener(unix=str(tmp_path / "s"), unix_mode="0620", unix_owner=owner)])
    try:
        found = (tmp_path / "s").stat()
        assert (found.st_uid, found.st_gid) == parse_owner(owner)
        assert stat.S_IMODE(found.st_mode) == 0o620
    finally:
        for one in bound:
            one.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a socket has a mode of its own on Linux only")
@pytest.mark.usefixtures("open_umask")
def test_it_is_made_without_any_permission(tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def chown(place: str, *numbers: int) -> None:
        modes.append(stat.S_IMODE((tmp_path / "s").stat().st_mode))
        with socket.socket(socket.AF_UNIX) as peer, pytest.raises(OSError):
            peer.connect(str(tmp_path / "s"))  # nobody listens there yet

    monkeypatch.setattr(os, "chown", chown)
    bind_unix(listening, str(tmp_path / "s"), 0o666, ME)
    assert modes == [0]
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o666


async def test_an_owner_that_only_root_may_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(place: str, *numbers: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(ListenError, match="s: this user may not give it to '0:0': only root may change the user, and others the group"):
        await bind_all([Listener(unix=str(tmp_path / "s"), unix_owner="0:0")])
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="the system has no descriptors of paths")
def test_a_link_that_took_the_path_is_not_followed(tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "s", tmp_path / "precious"
    other.write_text("x")
    other.chmod(0o600)
    give = unix._give

    def swapped(*arguments: object) -> tuple[int, int]:
        path.unlink()
        path.symlink_to(other)
        return give(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(unix, "_give", swapped)
    with pytest.raises(ListenError, match="something else was put there meanwhile"):
        bind_unix(listening, str(path), 0o666, None)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert path.is_symlink()  # not ours to remove
