"""help(broker.X) is a page to work with, for every public name: no member without a word, and none that is our own business."""

from __future__ import annotations

import inspect
import pydoc
import sys
from typing import Any

import msgspec
import pytest

import broker
from broker.cli.pages import COMMANDS, HELP

CLASSES = [name for name in broker.__all__ if inspect.isclass(getattr(broker, name))]
WORDS = [name for name in broker.__all__ if not inspect.isclass(getattr(broker, name)) and not inspect.isfunction(getattr(broker, name))]


def members(kind: type) -> dict[str, Any]:
    """Public ones that we wrote, in the class or in a base of ours."""
    return {
        name: member
        for base in kind.__mro__
        if base.__module__.startswith("broker")
        for name, member in vars(base).items()
        if not name.startswith("_") and not isinstance(member, kind)
    }


def test_the_package_names_what_is_in_it() -> None:
    page = pydoc.plain(pydoc.render_doc(broker))
    assert all(name in page for name in ("open_broker", "serve", "connect", "broker_thread", "Client", "Message", "BrokerError"))
    assert [name for name in dir(broker) if not name.startswith("__")] == sorted([*broker.__all__, "compiled"])  # what completion offers


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_explains_itself_and_every_member(name: str) -> None:
    kind = getattr(broker, name)
    text = vars(kind).get("__doc__") or ""
    assert len(text.split()) >= 4
    fields = kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else ()
    for member, value in members(kind).items():
        if member in fields or inspect.ismemberdescriptor(value):
            assert member in text, f"{name}'s docstring does not speak of {member}"
        else:
            assert inspect.getdoc(getattr(kind, member)), f"{name}.{member} has no docstring"


@pytest.mark.parametrize("name", [name for name in broker.__all__ if inspect.isfunction(getattr(broker, name))])
def test_a_function_explains_itself(name: str) -> None:
    assert len((getattr(broker, name).__doc__ or "").split()) >= 10


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14's unions take no docstring")
@pytest.mark.parametrize("name", WORDS)
def test_a_word_for_a_type_explains_itself(name: str) -> None:
    assert broker._WORDS[name] in pydoc.plain(pydoc.render_doc(getattr(broker, name))).replace("\n    ", " ")


def test_a_client_has_no_member_that_is_not_for_programs() -> None:
    assert sorted(members(broker.Client)) == [
        "client_id", "connack", "connected", "connections", "core", "disconnect", "pipeline", "publish", "reauthenticate", "reply", "request",
        "session_present", "statistics", "subscribe", "unclaimed", "unsubscribe", "version", "wait_connected",
    ]  # fmt: skip


def test_the_first_page_of_the_command_fits_into_half_a_screen() -> None:
    assert max(map(len, HELP.splitlines())) <= 60
    assert all(f"\n  {name} " in HELP for name in COMMANDS)
