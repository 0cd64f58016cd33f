"""Who may do what on which topic, asked synchronously: the answers are kept by the routes and links that asked.

The rules themselves come from outside: an embedder's `authorize`, or files. Without any, everything is allowed and nothing is
asked. Links and sessions hold the `Access` of the listener they came in by; new rules are put into it with `use`.
"""

from __future__ import annotations

from typing import Callable, Literal, TypeAlias  # noqa: UP035  # this Callable takes a docstring: see broker/__init__.py

Action: TypeAlias = Literal["publish", "receive", "subscribe"]
Authorize: TypeAlias = Callable[[str | None, str, Action, str], bool]
"""(user name, Client Identifier, action, Topic Name or Topic Filter) -> may it?"""


def is_bridge_state(topic: str) -> bool:
    """Is it where a bridge of Mosquitto's says whether it is connected, by its Will too? Of `$SYS` that alone is for clients."""
    levels = topic.split("/")
    return len(levels) == 5 and levels[4] == "state" and levels[:3] == ["$SYS", "broker", "connection"]


class Access:
    __slots__ = ("_authorize", "_on_error", "allows_all", "own", "refuses_wills")

    def __init__(
        self,
        authorize: Authorize | None = None,
        on_error: Callable[[Exception], None] | None = None,
        *,
        refuses_wills: bool = True,
        own: str = "",
    ) -> None:
        """refuses_wills: a CONNECT whose Will may not be published is refused; else the client comes in, and the Will is not published,
        which is Mosquitto's way. own: where it is of one client, and not of a listener, what a store keeps to have the same again."""
        self.own = own
        self._on_error = on_error
        self.use(authorize, refuses_wills=refuses_wills)

    def use(self, authorize: Authorize | None, *, refuses_wills: bool = True) -> None:
        """From now on. The caller says `Engine.forget_permissions`, or what was answered before stays."""
        self._authorize = authorize
        self.allows_all = authorize is None
        self.refuses_wills = refuses_wills

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
