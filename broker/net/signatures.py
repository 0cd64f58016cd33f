"""What tells a file's content from another, as far as the file system knows: so what has changed is seen, and read again."""

from __future__ import annotations

import os
from collections.abc import Iterable


def signatures(paths: Iterable[str | None]) -> dict[str, tuple[int, ...]]:
    """Of each path, None left out; () for what is not there."""
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path is not None:
            try:
                status = os.stat(path)
                found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
            except OSError:
                found[path] = ()
    return found
