"""Names of topic levels, shared where the same come again: "temperature" under each of a thousand rooms is one string.

That saves the memory of the others, and a look-up by such a name meets it in the processor's cache.
"""

from __future__ import annotations

from typing import Final

_COUNT_MAX: Final = 256
_LENGTH_MAX: Final = 64
"""Longer ones stand by themselves."""


class Names:
    """The newest ones; emptied when it is full."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def shared(self, name: str) -> str:
        """The one that is in use already, or this one from now on."""
        known = self._known.get(name)
        if known is not None or len(name) > _LENGTH_MAX:
            return known or name
        if len(self._known) >= _COUNT_MAX:
            self._known.clear()
        self._known[name] = name
        return name
