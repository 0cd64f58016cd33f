"""One place where a command starts, where what went wrong becomes one line on stderr, and where that line gets its exit code.

    0 done, interrupted, or the reader of stdout is gone    1 failed    2 wrong usage    27 the time of -W ran out    130 interrupted before it began
    the reason code, if the broker refused (3.1.1: its return code)    130 interrupted a second time
    128 and the signal's number (130, 143): a measurement that a signal cut short; the other commands are as much done then as they can be

`BROKER_TRACEBACK=1` shows the traceback of anything; without it none is ever printed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from broker.cli.pages import COMMANDS, HELP
from broker.words import printable

if TYPE_CHECKING:
    import click

    from broker.errors import ConnectError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
TIMED_OUT: Final = 27
INTERRUPTED: Final = 130
LINE_LENGTH_MAX: Final = 4_000

PIPE_BROKEN: Final = (errno.EPIPE,) if sys.platform != "win32" else (errno.EPIPE, errno.EINVAL)
"""What writing to a pipe says whose reader has gone."""

ENDINGS: Final = [signal.SIGINT, signal.SIGTERM]
"""The signals that ask for an end."""
if sys.platform == "win32":
    ENDINGS.append(signal.SIGBREAK)  # the only one that a program can send to another; what kills it there, SIGTERM included, asks nobody


class Failure(Exception):
    """One line for a person, and the exit code to leave with."""

    def __init__(self, line: str, code: int = FAILED) -> None:
        super().__init__(line)
        self.code = code


class OutputClosed(Exception):
    """Whoever read our stdout has gone; there is nobody left to serve."""


def say(line: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey. A URL that slipped in loses its user and password, and what is endless its
    middle."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", f"broker: {line}").replace("\n", " ")
    text = printable(text.encode("utf-8", "replace").decode())
    if len(text) > LINE_LENGTH_MAX:
        text = f"{text[: LINE_LENGTH_MAX // 2]} ... {text[-LINE_LENGTH_MAX // 2 :]}"
    with contextlib.suppress(OSError):  # stderr may be gone; there is nowhere to say that
        print(text, file=sys.stderr, flush=True)


def show(line: str) -> None:
    """One line on stdout. Failure where that cannot be written."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno in PIPE_BROKEN:
            raise OutputClosed from error
        raise Failure(f"stdout: {os_error_line(error)}") from error


def timed_out(seconds: float, *, quiet: bool) -> int:
    """The exit code of -W, said in a line."""
    if not quiet:
        say(f"timed out after {seconds:g} s (-W)")
    return TIMED_OUT


# ---- the command line ---------------------------------------------------------------------------------------------


def run_command_line(words: Sequence[str]) -> int:
    """Run one command line; returns the exit code and never raises."""
    try:
        return _dispatch(list(words))
    except (OSError, Failure, OutputClosed) as error:  # of stdout
        return report(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        show(HELP.rstrip())
        return DONE if words else WRONG_USAGE
    if words[0] == "--version":
        from broker import __version__, compiled

        show(f"broker {__version__} ({'compiled' if compiled else 'pure Python'})")
        return DONE
    name = words[0]
    if name not in COMMANDS:
        say(_no_such_command(name))
        return WRONG_USAGE
    try:
        return _run_command(name, words[1:])
    except Exception as error:
        return report(error)


def _no_such_command(name: str) -> str:
    import difflib

    if name.startswith("-"):
        return f"no such option: {name}; the command comes first, as in: broker sub -t 'sensors/#'"
    near = difflib.get_close_matches(name, COMMANDS, 1) or [
        known for known in COMMANDS if name in ("mosquitto_" + known, known + "scribe", known + "lish")
    ]
    return f"no such command: {name}; " + (f"did you mean {near[0]}?" if near else "'broker --help' lists them")


def _run_command(name: str, words: list[str]) -> int:
    import click

    command: click.Command = importlib.import_module(f"broker.cli.{name}").command
    try:
        code = command.main(words, prog_name=f"broker {name}", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except SystemExit:
        return _stdout_is_gone()  # what click makes of EPIPE while it prints help
    except click.Abort:
        return INTERRUPTED  # SIGINT while the line was read
    except click.ClickException as error:
        _traceback_if_wanted(error)
        say(_usage_line(name, command, error))
        return WRONG_USAGE
    return code if isinstance(code, int) else DONE


def _usage_line(name: str, command: click.Command, error: click.ClickException) -> str:
    import click

    host_is_h = any("-h" in parameter.opts and parameter.name == "host" for parameter in command.params)
    if isinstance(error, click.BadOptionUsage) and error.option_name == "-h" and host_is_h:
        return f"-h is the host here, and wants one; for help: broker {name} --help"
    message = " ".join(error.format_message().split())
    message = message[:1].lower() + message[1:] if message[1:2].islower() else message
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else f"broker {name}"
    return f"{message.rstrip('.')}; see '{path} --help'"


def _stdout_is_gone() -> int:
    """Quietly: also what Python itself still has for stdout when it ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


# ---- errors -------------------------------------------------------------------------------------------------------


def report(error: Exception, *, quiet: bool = False) -> int:
    """Say what went wrong in one line (unless quiet); returns the exit code."""
    cause = only_cause(error)
    _traceback_if_wanted(cause)
    if isinstance(cause, OutputClosed | BrokenPipeError):
        return _stdout_is_gone()
    line, code = explain(cause)
    if not quiet:
        say(line)
    return code


def only_cause(error: BaseException) -> BaseException:
    """The first exception inside groups: a nursery of ours wraps what its one failing task raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def explain(error: BaseException) -> tuple[str, int]:
    """(one line, exit code) for whatever ended a command."""
    from broker import errors
    from broker.reasons import ReasonCode

    if isinstance(error, Failure):
        return str(error), error.code
    if isinstance(error, errors.ConnectRefused):
        # 3.1.1 has return codes of its own, and scripts written for Mosquitto's tools test for them.
        advice = "; -V 311 speaks MQTT 3.1.1, as older brokers do" if error.return_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION else ""
        return f"{error}{advice}", error.return_code
    if isinstance(error, errors.PublishRefused | errors.SubscribeRefused):
        return str(error), int(error.reason)
    if isinstance(error, errors.ConnectionLost):
        return str(error), int(error.reason) if error.reason is not None and error.reason.failed else FAILED
    if isinstance(error, errors.ConnectError):
        return _with_advice(error), FAILED
    if isinstance(error, errors.InvalidTopic):
        return str(error), WRONG_USAGE
    if isinstance(error, errors.BrokerError):
        return str(error), FAILED
    if isinstance(error, OSError):
        return os_error_line(error), FAILED
    return f"internal error: {type(error).__name__} at {_place(error)}; please report it with what BROKER_TRACEBACK=1 shows", FAILED


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it came from, groups opened, at most a few steps."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting and len(found) < 32:
        current = waiting.pop()
        if current is None or current in found:
            continue
        found.append(current)
        waiting += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions
    return found


UNKNOWN_SIGNERS: Final = (18, 19, 20, 21)
"""OpenSSL's numbers for a certificate that nobody whom we trust has signed, itself or one above it."""


def _with_advice(error: ConnectError) -> str:
    import ssl

    line = str(error)
    causes = _causes(error)
    if any(isinstance(cause, ConnectionRefusedError | FileNotFoundError) for cause in causes) and "broker serve" not in line:
        return f"{line}; no broker answers there ('broker serve' starts one)"
    if any(isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in UNKNOWN_SIGNERS for cause in causes):
        return f"{line}; --cafile FILE says whom to trust"
    if error.address.startswith("mqtt:") and line.endswith("before a CONNACK came"):
        return f"{line}; does it ask for TLS there (--cafile FILE, --tls-use-os-certs)?"
    return line


def os_error_line(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason


def _place(error: BaseException) -> str:
    """Where it was raised; not what it says, which might hold anything."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "an unknown place"
    return f"{'/'.join(traceback.tb_frame.f_code.co_filename.split(os.sep)[-3:])}:{traceback.tb_lineno}"


def _traceback_if_wanted(error: BaseException) -> None:
    if os.environ.get("BROKER_TRACEBACK", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)


# ---- asynchronous commands ----------------------------------------------------------------------------------------


def interrupted_by(ending: BaseException) -> int:
    """The exit code of a Ctrl-C that no receiver of ours took: at the very start, or a second one. A nursery brings it in a group."""
    if isinstance(ending, BaseExceptionGroup) and ending.split(KeyboardInterrupt)[0] is None:
        raise ending
    return INTERRUPTED


def run_tool(work: Callable[[], Awaitable[int]], *, quiet: bool = False, cut_short: Callable[[int], Awaitable[int]] | None = None) -> int:
    """Run `work` under Trio until it returns its exit code. One of ENDINGS ends it with a goodbye and 0; a second SIGINT ends at once.

    cut_short: given the signal's number after it has ended `work`, says what remains to be said; returns the exit code in place of that 0.
    """
    import trio

    interrupted = 0

    async def until_interrupted() -> int:
        code = DONE
        scope = trio.CancelScope()

        async def watch(task_status: trio.TaskStatus[None]) -> None:
            nonlocal interrupted
            # After the first signal the handlers are what they were, so a second one does not wait for anything.
            with trio.open_signal_receiver(*ENDINGS) as signals:
                task_status.started()
                async for number in signals:
                    interrupted = number
                    scope.cancel()
                    return

        async with trio.open_nursery() as nursery:
            await nursery.start(watch)
            with scope:
                code = await work()
            if scope.cancelled_caught and cut_short is not None:
                code = await cut_short(interrupted)
            nursery.cancel_scope.cancel()
        return code

    try:
        return trio.run(until_interrupted)
    except Exception as error:
        return report(error, quiet=quiet)
    except (KeyboardInterrupt, BaseExceptionGroup) as ending:
        return interrupted_by(ending)
