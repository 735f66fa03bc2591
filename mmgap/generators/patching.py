# SPDX-License-Identifier: Apache-2.0
"""Attributes of other people's objects, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(thing: Any, name: str, value: Any) -> Iterator[None]:
    """An object with an attribute of its own in place of its class's; as before afterwards."""
    missing = object()
    before = vars(thing).get(name, missing)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(thing, name)
        else:
            setattr(thing, name, before)
