"""The config file: every key of the structs stands in config/broker.toml with its true default, and every mistake is told at once."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.auth.bans import Ban
from broker.auth.tokens import Jwt
from broker.bridge.settings import BridgeTls, BridgeTopic
from broker.config import DEFAULT_LISTENERS, Config
from broker.config.kinds import AccessConfig, BridgeConfig, ListenerConfig, LogConfig, OverflowConfig, StoreConfig
from broker.core.allowance import LimitOverrides
from broker.core.limits import Limits
from broker.errors import ConfigError
from broker.net.listener import Listener, parse_listener
from broker.net.tls import TlsFiles, TlsName
from tests.systems import unix_only

NO_HOST = 'expected a name or an address, without brackets and port, or "*" for every interface, got'
EXAMPLE = Path(__file__).parent.parent / "config" / "broker.toml"


def problems_of(data: dict[str, Any], env: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(data, env=env)
    return dict(caught.value.problems)


# ---- the example ---------------------------------------------------------------------------------------------------------


def test_example_loads_and_is_the_default() -> None:
    config = Config.load(EXAMPLE, env={})
    assert msgspec.structs.replace(config, listeners=DEFAULT_LISTENERS, overflow=()) == Config()
    assert config.listeners == (Listener(),)


def uncommented(text: str) -> dict[str, Any]:
    """The example with its commented keys switched on."""
    return tomllib.loads(re.sub(r"(?m)^# (?=[a-z_]+ = |\[)", "", text))


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("limits", Limits),
        ("log", LogConfig),
        ("store", StoreConfig),
        ("listeners", ListenerConfig),
        ("overflow", OverflowConfig),
        ("access", AccessConfig),
        ("banned", Ban),
        ("bridges", BridgeConfig),
        ("", Config),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_example_has_every_key_with_its_default(table: str, kind: Any) -> None:
    data = uncommented(EXAMPLE.read_text("utf-8"))
    written = data if not table else data[table]
    written = written[0] if isinstance(written, list) else written
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    assert set(written) == set(fields)
    for name, value in written.items():
        default = fields[name].default
        # Keys whose default is "not said" are shown commented out, with an example; tables have their own turn.
        if default not in (None, msgspec.NODEFAULT) and not isinstance(value, (dict, list)):
            assert value == default, name


def test_example_has_every_key_of_jwt_with_its_default() -> None:
    written = uncommented(EXAMPLE.read_text("utf-8"))
    for table in (written["jwt"], *(one["jwt"] for one in written["listeners"] if one["jwt"])):
        defaults = {field.name: field.default for field in msgspec.structs.fields(Jwt)}
        assert set(table) == set(defaults)
        for name in ("leeway_s", "require_expiry", "user_claim"):
            assert table[name] == defaults[name], name


def test_example_has_every_key_of_tls_with_its_default() -> None:
    written = uncommented(EXAMPLE.read_text("utf-8"))["listeners"][0]["tls"]
    assert set(written) == set(TlsFiles.__struct_fields__)
    assert (written["require_certificate"], written["identity"], written["tls_version"]) == (False, "none", "tlsv1.2")
    assert set(written["names"][0]) == set(TlsName.__struct_fields__)


def test_example_has_every_key_of_a_bridge_with_its_default() -> None:
    written = uncommented(EXAMPLE.read_text("utf-8"))["bridges"][0]
    (topic,) = written["topics"]
    assert set(topic) == set(BridgeTopic.__struct_fields__)
    assert BridgeTopic(**topic) == BridgeTopic(filter="sensors/#")
    assert set(written["tls"]) == set(BridgeTls.__struct_fields__)
    assert written["tls"]["check_hostname"] is BridgeTls().check_hostname


# ---- mistakes ------------------------------------------------------------------------------------------------------------


def test_every_mistake_is_told() -> None:
    found = problems_of(
        {
            "allow_anonymous": 3,
            "shutdown_grace_s": -1,
            "limits": {"receive_maximum": 0, "queue_count_max": "many", "queue_cuont_max": 1},
            "log": {"level": "loud"},
            "listeners": [{"port": 99_999, "backlog": 0}, {"hots": "x", "unix_mode": "rw"}],
            "overflow": [{"filter": "a/#/b", "rule": "refuse"}, {"filter": "a"}, {"filter": "$share/g/a/#", "rule": "latest"}],
        }
    )
    assert found["allow_anonymous"] == "expected true or false, got 3"
    assert found["shutdown_grace_s"] == "expected 0 or more, got -1.0"
    assert found["limits.receive_maximum"] == "expected 1 to 65,535, got 0"
    assert found["limits.queue_count_max"] == 'expected a whole number, got "many"'
    assert found["limits.queue_cuont_max"] == "unknown key; did you mean queue_count_max?"
    assert found["log.level"] == 'expected debug, info, warning, error, got "loud"'
    assert found["listeners[0].port"] == "expected 0 to 65535, got 99999"
    assert found["listeners[0].backlog"] == "expected 1 or more, got 0"
    assert found["listeners[1].hots"] == "unknown key; did you mean host?"
    assert "octal digits" in found["listeners[1].unix_mode"]
    assert "#" in found["overflow[0].filter"]
    assert found["overflow[1].rule"] == "is missing"
    assert "'a/#'" in found["overflow[2].filter"]


def test_limits_of_listeners_and_users() -> None:
    config = Config.from_dict(
        {
            "limits": {"queue_count_max": 5},
            "listeners": [{"limits": {"packet_bytes_max": 1000}}, {"port": 1}],
            "limits_for": [{"users": ["ann", "ben"], "inflight_count_max": 7}, {"users": ["eve"]}],
        },
        env={"BROKER__LISTENERS__1__LIMITS__MAXIMUM_QOS": "1", "BROKER__LIMITS_FOR__1__QUEUE_COUNT_MAX": "6"},
    )
    assert [listener.limits for listener in config.listeners] == [LimitOverrides(packet_bytes_max=1000), LimitOverrides(maximum_qos=1)]
    seven = LimitOverrides(inflight_count_max=7)
    assert config.limits_for == (("ann", seven), ("ben", seven), ("eve", LimitOverrides(queue_count_max=6)))


def test_mistakes_in_limits_of_listeners_and_users() -> None:
    found = problems_of(
        {
            "limits": {"outbox_bytes_high": 2000},
            "listeners": [{"limits": {"sessions_count_max": 1, "queue_cuont_max": 1, "outbox_bytes_max": 1999}}, {"port": 1884, "limits": 5}],
            "limits_for": [
                {"users": ["ann"], "connect_timeout_s": 1, "memory_bytes_max": 1},
                {"users": ["ann"], "receive_maximum": 0, "maximum_qos": "two"},
                {"users": "ann"},
                {},
                3,
            ],
        }
    )
    assert found == {
        "listeners[0].limits.sessions_count_max": "holds for the whole broker: it belongs to [limits]",
        "listeners[0].limits.queue_cuont_max": "unknown key; did you mean queue_count_max?",
        "listeners[0].limits.outbox_bytes_max": "expected at least outbox_bytes_high (2,000), got 1,999",
        "listeners[1].limits": "expected a table, got 5",
        "limits_for[0].connect_timeout_s": "holds before anybody knows whose client it is: it belongs to [limits] or [listeners.limits]",
        "limits_for[0].memory_bytes_max": "holds for the whole broker: it belongs to [limits]",
        "limits_for[1].users": '"ann" has limits already',
        "limits_for[1].receive_maximum": "expected 1 to 65,535, got 0",
        "limits_for[1].maximum_qos": 'expected a whole number, got "two"',
        "limits_for[2].users": 'expected a list of user names, got "ann"',
        "limits_for[3].users": "is missing",
        "limits_for[4]": "expected a table, got 3",
    }
    assert problems_of({"limits_for": {"users": ["ann"]}}) == {"limits_for": "expected a list of tables ([[limits_for]]), got a table"}


def test_mistakes_in_the_files_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic read a\ntopic raed b\nusers x\n")
    (tmp_path / "passwords").write_text("ann\n")
    (tmp_path / "broker.toml").write_text(
        'acl_file = "acl"\npassword_file = "passwords"\n[[listeners]]\nacl_file = "none"\n'
        '[listeners.tls]\ncertificate = "none.pem"\nkye = "x"\n[[access]]\ntopic = "a#"\nmay = "publish"\n'
    )
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "broker.toml", env={})
    found = [f"{key}: {text}" for key, text in caught.value.problems]
    assert f"acl_file: {tmp_path / 'acl'}: line 2: expected read, write, readwrite or deny before the filter, got 'raed'" in found
    assert f"acl_file: {tmp_path / 'acl'}: line 3: expected topic, user or pattern and a space, got 'users'" in found
    assert f"password_file: {tmp_path / 'passwords'}: line 1: expected name:hash" in found
    assert f"listeners[0].acl_file: {tmp_path / 'none'} cannot be read: no such file or directory" in found
    assert "listeners[0].tls.kye: unknown key; did you mean key?" in found
    assert 'access[0].may: expected read, write, readwrite, deny, got "publish"' in found


@pytest.mark.parametrize(
    ("data", "key", "expected"),
    [
        ({"limits": 3}, "limits", "expected a table, got 3"),
        ({"listeners": {"port": 1}}, "listeners", "expected a list of tables ([[listeners]]), got a table"),
        ({"listeners": [1]}, "listeners[0]", "expected a table, got 1"),
        ({"limits": {"receive_maximum": True}}, "limits.receive_maximum", "expected a whole number, got true"),
        ({"limits": {"receive_maximum": 1.5}}, "limits.receive_maximum", "expected a whole number, got 1.5"),
        ({"limits": {"outbox_bytes_max": 2000}}, "limits.outbox_bytes_max", "expected at least outbox_bytes_high (1,048,576), got 2,000"),
        ({"limits": {"connect_timeout_s": math.nan}}, "limits.connect_timeout_s", "expected 0.001 to 1,000,000,000, got nan"),
        ({"limits": {"connect_timeout_s": math.inf}}, "limits.connect_timeout_s", "expected 0.001 to 1,000,000,000, got inf"),
        ({"limits": {"memory_bytes_max": 0}}, "limits.memory_bytes_max", "expected 16,384 or more, got 0"),
        ({"limits": {"memory_bytes_max": 10**40}}, "limits.memory_bytes_max", "expected 16,384 to 9,007,199,254,740,992, got far more"),
        ({"limits": {"sessions_count_max": 0}}, "limits.sessions_count_max", "expected 1 or more, got 0"),
        ({"limits": {"retained_replays_count_max": 0}}, "limits.retained_replays_count_max", "expected 1 or more, got 0"),
        ({"limits": {"queue_count_max": -1}}, "limits.queue_count_max", "expected 0 or more, got -1"),
        (
            {"limits": {"connects_per_client_id_per_s_max": math.inf}},
            "limits.connects_per_client_id_per_s_max",
            "expected 0 to 1,000,000,000, got inf",
        ),
        (
            {"limits_for": [{"users": ["a"], "retained_replays_count_max": 0}]},
            "limits_for[0].retained_replays_count_max",
            "expected 1 or more, got 0",
        ),
        ({"shutdown_grace_s": math.inf}, "shutdown_grace_s", "expected 0 to 1,000,000,000, got inf"),
        ({"shutdown_grace_s": math.nan}, "shutdown_grace_s", "expected 0 to 1,000,000,000, got nan"),
        ({"sys_interval_s": 0.001}, "sys_interval_s", "expected 0.1 or more, got 0.001; 0 is off"),
        ({"sys_interval_s": math.nan}, "sys_interval_s", "expected 0.1 to 1,000,000,000, got nan; 0 is off"),
        ({"listeners": [{"connections_count_max": 10**400}]}, "listeners[0].connections_count_max", "expected 1 to 2,147,483,647, got far more"),
        ({"limits": {"inflight_bytes_max": 0}}, "limits.inflight_bytes_max", "expected 1 or more, got 0"),
        ({"listeners": [{"host": "localhost:1883"}]}, "listeners[0].host", f"{NO_HOST} 'localhost:1883'"),
        ({"listeners": [{"host": "[::1]"}]}, "listeners[0].host", f"{NO_HOST} '[::1]'"),
        ({"listeners": [{"backlog": 2**31}]}, "listeners[0].backlog", "expected 1 to 2,147,483,647, got 2147483648"),
        ({"listeners": [{"send_buffer_bytes": 2**31}]}, "listeners[0].send_buffer_bytes", "expected 0 to 2,147,483,647, got 2147483648"),
        ({"listeners": [{"receive_buffer_bytes": 2**31}]}, "listeners[0].receive_buffer_bytes", "expected 0 to 2,147,483,647, got 2147483648"),
        ({"listeners": [{"tcp_keepalive_s": math.inf}]}, "listeners[0].tcp_keepalive_s", "expected 0 to 32,767, got inf"),
        ({"listeners": [{"tcp_keepalive_s": math.nan}]}, "listeners[0].tcp_keepalive_s", "expected 0 to 32,767, got nan"),
        # A path with U+0000 is none, and opening it is no OSError.
        ({"password_file": "a\0b"}, "password_file", "must not contain U+0000"),
        ({"acl_file": "a\0b"}, "acl_file", "must not contain U+0000"),
        ({"store": {"path": ""}}, "store.path", 'expected the path of a file, got ""; without a path nothing is kept'),
        ({"store": {"path": 7}}, "store.path", "expected text in quotes, got 7"),
        ({"store": {"path": "a\0b"}}, "store.path", "must not contain U+0000"),
        ({"store": {"target": "x"}}, "store.target", "unknown key here; it belongs in [log]"),
        ({"store": "x.db"}, "store", 'expected a table, got "x.db"'),
        ({"log": {"target": "a\0b"}}, "log.target", "must not contain U+0000"),
        ({"listeners": [{"unix": "a\0b"}]}, "listeners[0].unix", "must not contain U+0000"),
        ({"listeners": [{"tls": {"certificate": "a\0b"}}]}, "listeners[0].tls.certificate", "must not contain U+0000"),
        # What `serve` could not do, or not as it was meant.
        ({"listeners": [{"unix": ""}]}, "listeners[0].unix", "expected the path of a socket, got ''"),
        ({"listeners": [{"path": "/ws"}]}, "listeners[0].path", 'means something only with protocol = "websocket"'),
        ({"listeners": [{"port": 1884}, {"port": 1885}, {"port": 1884}]}, "listeners[2].port", "listeners[0] listens there already"),
        ({"listeners": [{}, {"protocol": "websocket"}]}, "listeners[1].port", "listeners[0] listens there already"),
    ],
)
def test_one_mistake(data: dict[str, Any], key: str, expected: str) -> None:
    assert problems_of(data) == {key: expected}


def test_listeners_that_do_not_meet() -> None:
    listeners = Config.from_dict({"listeners": [{"port": 0}, {"port": 0}, {"systemd": "a"}, {"systemd": "b"}, {"host": "::1"}, {}]}).listeners
    assert len(listeners) == 6


def test_file_mistakes_name_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: no such file"):
        Config.load(missing, env={})
    (tmp_path / "bad.toml").write_text("port = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not TOML: .*line 1"):
        Config.load(tmp_path / "bad.toml", env={})
    (tmp_path / "mosquitto.conf").write_text("listener 1883\nallow_anonymous true\n")
    with pytest.raises(ConfigError, match=r"mosquitto\.conf: is not TOML: .*line 1.*; from a .* to TOML: config/mosquitto-migration\.md"):
        Config.load(tmp_path / "mosquitto.conf", env={})
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe9"')
    with pytest.raises(ConfigError, match=r"is not UTF-8 at byte 5"):
        Config.load(tmp_path / "latin.toml", env={})
    (tmp_path / "key.toml").write_text("[[listeners]]\nport = 'x'")
    with pytest.raises(ConfigError, match=r'key\.toml: listeners\[0\]\.port: expected a whole number, got "x"'):
        Config.load(tmp_path / "key.toml", env={})


def test_an_environment_that_is_not_utf_8_or_counts_in_other_digits() -> None:
    env = {"BROKER__LIMITS__MAXIMUM_QOS": "\udcff", "BROKER__LISTENERS__\u00b2__PORT": "1"}
    assert problems_of({"listeners": []}, env) == {
        "limits.maximum_qos": "is not UTF-8 (set by BROKER__LIMITS__MAXIMUM_QOS)",
        "BROKER__LISTENERS__\u00b2__PORT": "expected a number from 0 to 0 after the name of a list",
    }


def test_a_byte_order_mark_is_none_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbfsys_interval_s = 3\r\n")
    assert Config.load(tmp_path / "windows.toml", env={}).sys_interval_s == 3


@pytest.mark.parametrize("path", [r"C:\Users\ann\broker.db", r"C:\data\broker.db"])
def test_a_path_of_windows_in_double_quotes_is_not_toml(tmp_path: Path, path: str) -> None:
    (tmp_path / "windows.toml").write_text(f'[store]\npath = "{path}"\n')
    with pytest.raises(ConfigError, match=r"is not TOML: .*line 2.*; a path with \\ stands in single quotes"):
        Config.load(tmp_path / "windows.toml", env={})


@pytest.mark.parametrize("path", [r"C:\temp\new.db", r"d:\broker.db", r"C:/a\nb"])
def test_a_path_of_windows_that_toml_reads_otherwise_is_a_mistake(tmp_path: Path, path: str) -> None:
    """Without a word it would be a file with a tab in its name."""
    (tmp_path / "windows.toml").write_text(f'[[listeners]]\npassword_file = "{path}"\n[store]\npath = "{path}"\n')
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "windows.toml", env={})
    assert [key for key, _ in caught.value.problems] == ["listeners[0].password_file", "store.path"]
    assert all("; a path with \\ stands in single quotes: 'C:\\broker\\store.db'" in text for _, text in caught.value.problems)


def test_a_path_of_windows_in_single_quotes(tmp_path: Path) -> None:
    path = rf"{tmp_path}\new.db"
    (tmp_path / "windows.toml").write_text(f"[store]\npath = '{path}'\n")
    assert Config.load(tmp_path / "windows.toml", env={}).store.path == str(tmp_path / path)


def test_a_file_that_is_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text(f"x = {'[' * 5000}{']' * 5000}")
    with pytest.raises(ConfigError, match=r"deep\.toml: is nested too deep"):
        Config.load(tmp_path / "deep.toml", env={})


@unix_only
def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('[[listeners]]\nunix = "run/mqtt.sock"\n[log]\ntarget = "broker.log"\n[store]\npath = "kept/broker.db"')
    config = Config.load(tmp_path / "broker.toml", env={})
    assert config.listeners[0].unix == str(tmp_path / "run" / "mqtt.sock")
    assert config.log.target == str(tmp_path / "broker.log")
    assert config.store.path == str(tmp_path / "kept" / "broker.db")


# ---- the environment -----------------------------------------------------------------------------------------------------


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text("[[listeners]]\nport = 1\n[limits]\nreceive_maximum = 5")
    env = {
        "BROKER__LISTENERS__0__PORT": "1884",
        "BROKER__LISTENERS__1__HOST": "10.0.0.1",
        "BROKER__LISTENERS__1__UNIX_MODE": "0600",
        "BROKER__LOG__LEVEL": "debug",
        "BROKER__STORE__PATH": "7",
        "BROKER__ALLOW_ANONYMOUS": "true",
        "BROKER__LIMITS__CONNECT_TIMEOUT_S": "2.5",
        "BROKER_FORBID_SKIPS": "1",
        "PATH": "x",
    }
    config = Config.load(tmp_path / "broker.toml", env=env)
    assert [(one.host, one.port, one.unix_mode) for one in config.listeners] == [("127.0.0.1", 1884, None), ("10.0.0.1", 1883, "0600")]
    assert config.log.level == "debug"
    assert config.store.path == str(tmp_path / "7")
    assert config.allow_anonymous is True
    assert config.limits == Limits(receive_maximum=5, connect_timeout_s=2.5)


def test_a_key_in_another_table_is_told_where_it_belongs() -> None:
    """As where the line with the [table] is still a comment."""
    found = problems_of(
        {
            "tls": {},
            "limits": {"users": ["ann"], "shutdown_grace_s": 1},
            "listeners": [{"client_ca": "ca.pem", "certificate": "x", "key_file": "y"}],
            "store": {"expiry_s": 5},
            "overflow": [{"filter": "#", "rule": "latest", "may": "read"}],
        }
    )
    assert found["tls"] == "unknown key here; it belongs in [[listeners]] or in [[bridges]]"
    assert found["limits.shutdown_grace_s"] == "unknown key here; it belongs above the first [table]"
    assert found["limits.users"] == "unknown key here; it belongs in [[limits_for]]"
    assert found["listeners[0].client_ca"] == "unknown key here; it belongs in [listeners.tls]"
    homes = "in [listeners.tls] or in [[listeners.tls.names]] or in [bridges.tls]"
    assert found["listeners[0].certificate"] == f"unknown key here; it belongs {homes}"
    assert found["listeners[0].key_file"] == "unknown key here; it belongs in [jwt]"
    assert found["store.expiry_s"].startswith("unknown key; expected one of path")
    assert found["overflow[0].may"] == "unknown key here; it belongs in [[access]]"


def test_environment_mistakes_name_what_was_meant() -> None:
    env = {"BROKER__LISTENERS__7__PORT": "1", "BROKER__LIMITS__RECEIVE_MAXIMUM": "lots", "BROKER__BOGUS": "1", "BROKER__LISTENERS__X": "1"}
    found = problems_of({"listeners": [{}]}, env)
    assert found["BROKER__LISTENERS__7__PORT"] == "expected a number from 0 to 1 after the name of a list"
    assert found["limits.receive_maximum"] == 'expected a whole number, got "lots" (set by BROKER__LIMITS__RECEIVE_MAXIMUM)'
    assert "unknown key" in found["bogus"]
    assert found["bogus"].endswith(" (set by BROKER__BOGUS)")
    assert problems_of({"listeners": [{}]}, {"BROKER__LISTENERS__0__PORT": "x"})["listeners[0].port"].endswith(" (set by BROKER__LISTENERS__0__PORT)")
    assert "BROKER__LISTENERS__X" in found


def test_defaults_listen_on_this_machine_only() -> None:
    assert Config.from_dict({}).listeners == DEFAULT_LISTENERS
    assert all(listener.is_private for listener in DEFAULT_LISTENERS)


def test_replaced_by_the_command_line() -> None:
    config = Config().replaced(listeners=[Listener(port=0)], allow_anonymous=True)
    assert (config.listeners, config.allow_anonymous) == ((Listener(port=0),), True)
    assert Config().replaced() == Config()


# ---- listener URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("mqtt://127.0.0.1:0", Listener(host="127.0.0.1", port=0)),
        ("mqtt://[::1]:1884", Listener(host="::1", port=1884)),
        ("mqtt://localhost", Listener(host="localhost", port=1883)),
        ("mqtt://*:1883", Listener(host="*", port=1883)),
        ("unix:///run/mqtt%20x.sock", Listener(unix="/run/mqtt x.sock")),
        ("ws://[::1]:0/mqtt", Listener(host="::1", port=0, protocol="websocket")),
        ("ws://localhost", Listener(host="localhost", port=80, protocol="websocket")),
        ("ws://localhost/", Listener(host="localhost", port=80, protocol="websocket", path="/")),
        ("http://[::1]:9883", Listener(host="::1", port=9883, protocol="http")),
        ("http://localhost/", Listener(host="localhost", port=80, protocol="http")),
    ],
)
def test_listener_url(text: str, listener: Listener) -> None:
    assert parse_listener(text) == listener


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:1883",
        "https://x",
        "http://x/metrics",
        "ws://x:1/a?b",
        "wss://x:1",
        "mqtts://x:1",
        "mqtt://:1",
        "mqtt://x:99999",
        "mqtt://u:p@x:1",
        "mqtt://u:p@[x]:1",
        "mqtt://u:p\u2100@x:1",
        "mqtt://x/y",
        "unix://",
    ],
)
def test_wrong_listener_url(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_listener(text)
    assert "u:p" not in str(caught.value)  # never a password


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("LOCALHOST", True),
        ("*", False),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_what_is_private(host: str, private: bool) -> None:
    assert Listener(host=host).is_private is private
