# SPDX-License-Identifier: Apache-2.0
"""Reading configs of either style: a ``type`` is a name, or the class itself (``read_base``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmengine.registry import init_default_scope


def name_of(kind: Any) -> str:
    """The name of a ``type`` alone: ``'GAPHook'`` for ``'mmgap.GAPHook'`` and for the class."""
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return re.split(r'[./]', name)[-1]


def is_gap_hook(hook: Any) -> bool:
    """Whether an entry of ``custom_hooks`` is a config of GAPHook, or of a class made from it."""
    kind = hook.get('type') if isinstance(hook, Mapping) else None
    classes = kind.__mro__ if isinstance(kind, type) else [kind]
    return 'GAPHook' in map(name_of, classes)


def gap_hooks(config: Mapping[str, Any]) -> list[Any]:
    """The configs of GAPHook among a config's ``custom_hooks``; changing them changes it."""
    return [hook for hook in config.get('custom_hooks') or () if is_gap_hook(hook)]


def set_scope(config: Mapping[str, Any]) -> None:
    """Look up plain names in the registries that a config names.

    With ``default_scope=None``, as configs of the new style have it, names stay with MMEngine.
    """
    scope = config.get('default_scope', 'mmpretrain')
    if scope is not None:
        init_default_scope(scope)


def toolbox_of(config: Mapping[str, Any]) -> str:
    """Whose config it is: its ``default_scope``, or that of its model; else ``'mmpretrain'``."""
    scope = config.get('default_scope')
    if scope is not None:
        return scope
    kind = (config.get('model') or {}).get('type', '')
    places = [c.__module__ for c in kind.__mro__] if isinstance(kind, type) else [str(kind)]
    return 'mmseg' if any(place.startswith('mmseg.') for place in places) else 'mmpretrain'
