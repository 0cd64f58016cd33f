"""Client Identifiers bound to user names, so that nobody throws out another's client by coming with its identifier."""

from __future__ import annotations

import re
from collections.abc import Sequence


class ClientIds:
    """patterns: which identifiers a client may bring, `%u` its user name, `*` at the end for any more; None for all. from_username: it is called as
    its user is, whatever it brings."""

    __slots__ = ("from_username", "patterns")

    def __init__(self, patterns: Sequence[str] | None = None, from_username: bool = False) -> None:
        self.patterns = patterns
        self.from_username = from_username

    @property
    def bound(self) -> bool:
        return self.patterns is not None or self.from_username

    def settle(self, client_id: str, username: str | None) -> str | None:
        """The identifier to serve it under; None: not this one, or an empty one, which would be of nobody."""
        if self.from_username:
            client_id = username or ""
        if not self.bound:
            return client_id
        if not client_id or not (self.patterns is None or any(_fits(pattern, client_id, username) for pattern in self.patterns)):
            return None
        return client_id


def _fits(pattern: str, client_id: str, username: str | None) -> bool:
    stem = pattern.removesuffix("*")
    if "%u" in stem:
        if not username:  # an empty one would leave "*"
            return False
        stem = stem.replace("%u", username)
    return client_id.startswith(stem) if pattern.endswith("*") else client_id == stem


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with one of `client_ids`; None if nothing is."""
    if not pattern:
        return "an empty pattern fits nothing"
    if re.search("%[a-tv-z]", pattern):
        return f'"%u" is the user name, and there is nothing else with a "%", got {pattern!r}'
    return 'a * stands at the end only, as in "%u-*"' if "*" in pattern[:-1] else None
