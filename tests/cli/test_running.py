"""What each error says, and with which code it leaves. The whole table, for scripts depend on it."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from broker import errors
from broker.cli.formatting import NotJson
from broker.cli.running import Failure, OutputClosed, explain, only_cause, report, run_command_line, say
from broker.reasons import ReasonCode


def refused_by_3_1_1() -> errors.ConnectRefused:
    refused = errors.ConnectRefused("h:1", ReasonCode.NOT_AUTHORIZED)
    refused.return_code = 5
    return refused


def because_of(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TABLE = [
    (Failure("it broke"), 1, "it broke"),
    (Failure("it timed out", 27), 27, "it timed out"),
    (errors.ConnectRefused("h:1", ReasonCode.NOT_AUTHORIZED), 135, "not authorized"),
    (errors.ConnectRefused("h:1", ReasonCode.BAD_USER_NAME_OR_PASSWORD), 134, "bad user name or password"),
    (refused_by_3_1_1(), 5, "not authorized"),
    (errors.ConnectRefused("h:1", ReasonCode.UNSUPPORTED_PROTOCOL_VERSION), 132, "-V 311 speaks MQTT 3.1.1"),
    (errors.PublishRefused("t", ReasonCode.QUOTA_EXCEEDED), 151, "publish to 't' refused"),
    (errors.SubscribeRefused("f/#", ReasonCode.NOT_AUTHORIZED), 135, "subscription to 'f/#' refused"),
    (errors.ConnectionLost("taken over", ReasonCode.SESSION_TAKEN_OVER), 142, "taken over"),
    (errors.ConnectionLost("end of stream"), 1, "end of stream"),
    (errors.ConnectError("h:1", "no route"), 1, "h:1: no route"),
    (because_of(errors.ConnectError("h:1", "refused"), ConnectionRefusedError()), 1, "broker serve"),
    (errors.ListenError("h:1", "permission denied; do this"), 1, "cannot listen on h:1: permission denied; do this"),
    (errors.InvalidTopic("no wildcard there"), 2, "no wildcard there"),
    (errors.NotSupported("needs MQTT 5.0"), 1, "needs MQTT 5.0"),
    (errors.ConfigError([("listeners[0].port", "expected int")], "b.toml"), 1, "b.toml: listeners[0].port: expected int"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pem"), 1, "x.pem: no such file or directory"),
    (KeyError("secret"), 1, "internal error: KeyError"),
]


@pytest.mark.parametrize(("error", "code", "said"), TABLE, ids=[repr(row[0])[:60] for row in TABLE])
def test_an_error_has_one_line_and_a_code(error: Exception, code: int, said: str) -> None:
    line, found = explain(error)
    assert found == code
    assert said in line
    assert "secret" not in line


def test_a_group_of_one_is_its_one() -> None:
    inner = errors.Offline("away")
    assert only_cause(ExceptionGroup("", [ExceptionGroup("", [inner])])) is inner


def test_nothing_is_said_when_the_reader_of_stdout_has_gone(capfd: pytest.CaptureFixture[str]) -> None:
    # In a process of its own, for the stdout of a test must stay.
    code = "import sys; from broker.cli.running import *; sys.exit(report(OutputClosed()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert issubclass(OutputClosed, Exception)


def test_quiet_keeps_the_code_and_not_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(Failure("it broke", 7), quiet=True) == 7
    assert capsys.readouterr().err == ""


def test_a_traceback_comes_only_when_it_is_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotJson) as caught:
        raise NotJson("deep inside")
    assert report(caught.value) == 1
    quiet = capsys.readouterr().err
    monkeypatch.setenv("BROKER_TRACEBACK", "1")
    report(caught.value)
    loud = capsys.readouterr().err
    assert len(quiet.splitlines()) == 1
    assert "BROKER_TRACEBACK=1" in quiet
    assert "Traceback" in loud


def test_a_line_is_one_line_and_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    say("cannot reach mqtt://user:secret@host:1/x\nat all")
    assert capsys.readouterr().err == "broker: cannot reach mqtt://host:1/x at all\n"


USAGE = [
    ([], 2, "Usage: broker COMMAND"),
    (["--help"], 0, "Usage: broker COMMAND"),
    (["-h"], 0, "Usage: broker COMMAND"),
    (["pub", "--help"], 0, "Usage: broker pub"),
    (["serve", "-h"], 0, "Usage: broker serve"),
    (["publ"], 2, "did you mean pub?"),
    (["publish"], 2, "did you mean pub?"),
    (["--prot"], 2, "the command comes first"),
    (["zzz"], 2, "no such command: zzz"),
    (["pub", "-h"], 2, "-h is the host here, and wants one; for help: broker pub --help"),
    (["sub", "-t", "x", "-h"], 2, "-h is the host here"),
    (["pub", "-p"], 2, "'-p' requires an argument"),
    (["pub", "-t", "x", "-m", "y", "z"], 2, "unexpected extra argument (z)"),
    (["sub", "--frobnicate"], 2, "no such option"),
]


@pytest.mark.parametrize(("words", "code", "said"), USAGE, ids=[" ".join(row[0]) or "(nothing)" for row in USAGE])
def test_usage(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(words) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    if printed.err:
        assert len(printed.err.splitlines()) == 1


def test_help_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run_command_line(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 84


LIGHT = [
    ["--help"],
    ["--version"],
    ["pub", "--help"],
    ["sub", "--help"],
    ["rr", "--help"],
    ["serve", "--help"],
    ["check", "--help"],
    ["pub", "-t", "x"],
]


@pytest.mark.parametrize("words", LIGHT, ids=[" ".join(words) for words in LIGHT])
def test_help_and_wrong_usage_do_without_trio(words: list[str]) -> None:
    code = f"""
import sys
from broker.cli.running import run_command_line
run_command_line({words!r})
print(sorted({{"trio", "rich", "ssl"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
