# SPDX-License-Identifier: Apache-2.0
"""Reading configs of either style: a ``type`` is a name, or the class itself (``read_base``)."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from mmengine.registry import init_default_scope

Settings = TypeVar('Settings')


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


def build_settings(kind: type[Settings], settings: Mapping[str, Any], name: str) -> Settings:
    """Make a dataclass of settings from a config.

    Args:
        kind: The dataclass.
        settings: Its fields; lists and dicts as plain ones.
        name: What the config calls them, for messages.

    Raises:
        TypeError: If there is no such setting, or one is missing.
        ValueError: If one is out of range.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise TypeError(f'{name} has no settings {unknown}; there are {known}')
    return kind(**settings)


def change_settings(settings: Settings, changes: Mapping[str, Any], name: str) -> Settings:
    """The same settings with changes; as :func:`build_settings`."""
    return build_settings(type(settings), {**vars(settings), **changes}, name)


def refuse_old_names(kind: type, **names: str) -> None:
    """See that a class has no method or attribute by a name that nothing asks for any more.

    Args:
        kind: The class.
        **names: Old names and those of today.

    Raises:
        TypeError: If it has.
    """
    for old, new in names.items():
        if old in vars(kind):
            raise TypeError(f'{kind.__name__}.{old} is called {new} now; rename it')


def renamed(settings: dict[str, Any], name: str, **names: str) -> None:
    """Take settings by their old names, with a warning, for one release.

    Args:
        settings: Changed in place.
        name: Whose they are, for the warning.
        **names: Old names and new ones.
    """
    for old, new in names.items():
        if old in settings:
            warnings.warn(f'{name}: {old}= is called {new}= now', FutureWarning, stacklevel=3)
            settings[new] = settings.pop(old)
