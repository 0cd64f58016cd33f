"""A file of the operator's, read whole, and no further than it may be large: its size says nothing of a pipe, or of `/dev/zero`."""

from __future__ import annotations

from os import PathLike


def read_bounded(path: str | PathLike[str], bytes_max: int) -> bytes:
    """OSError; ValueError for one that is larger."""
    with open(path, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"is larger than {bytes_max:,} bytes")
    return data
