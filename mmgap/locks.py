# SPDX-License-Identifier: Apache-2.0
"""Keeps two processes from writing to one folder at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Folders that this process has locked: the open folder, and how often.
_held: dict[str, list[int]] = {}


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let no other process have the folder while open; the same process may have it again.

    The system frees it when the process ends in whatever way; no file is left. Where the system or
    the file system knows no such locks, nothing is locked.

    Args:
        folder: Must exist.

    Raises:
        BlockingIOError: If another process has it.
    """
    name = os.path.realpath(folder)
    if name not in _held:
        descriptor = _lock(name, folder)
        if descriptor is None:
            yield
            return
        _held[name] = [descriptor, 0]
    _held[name][1] += 1
    try:
        yield
    finally:
        if name in _held:  # not so in a process that was forked meanwhile
            _held[name][1] -= 1
            if not _held[name][1]:
                os.close(_held.pop(name)[0])


def _lock(name: str, folder: str | Path) -> int | None:
    if fcntl is None:
        return None
    try:
        descriptor = os.open(name, os.O_RDONLY)
    except PermissionError:  # a folder that cannot be listed can still be written to
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(
            f'another process writes to {folder}; wait until it has ended, or give another folder'
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _forget() -> None:
    """A forked process, as a loader's worker, shall not keep a folder after its parent's end."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)
