"""Who may do what on which topic, asked synchronously: the answers are kept by the routes and links that asked.

The rules themselves come from outside: an embedder's `authorize`, later files. Without any, everything is allowed and
nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

Action: TypeAlias = Literal["publish", "receive", "subscribe"]
Authorize: TypeAlias = Callable[[str | None, str, Action, str], bool]
"""(user name, Client Identifier, action, Topic Name or Topic Filter) -> may it?"""


class Access:
    __slots__ = ("_authorize", "_on_error", "allows_all")

    def __init__(self, authorize: Authorize | None = None, on_error: Callable[[Exception], None] | None = None) -> None:
        self._authorize = authorize
        self._on_error = on_error
        self.allows_all = authorize is None

    def may(self, username: str | None, client_id: str, action: Action, topic: str) -> bool:
        """A rule that fails refuses: nobody gets in by a mistake of ours."""
        if self._authorize is None:
            return True
        try:
            return self._authorize(username, client_id, action, topic) is True
        except Exception as error:  # an embedder's code: any error, never into the publisher's connection
            if self._on_error is not None:
                self._on_error(error)
            return False
