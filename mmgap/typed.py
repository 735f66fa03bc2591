# SPDX-License-Identifier: Apache-2.0
"""Settings out of configs: whether they exist, and have the types of their annotations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union

import numpy as np

T = TypeVar('T')
NAMES: dict[Any, str] = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    types.NoneType: 'None',
    dict: 'a dict',
    list: 'a list',
}


def check_types(settings: Mapping[str, Any], hints: Mapping[str, Any], name: str) -> dict[str, Any]:
    """See that settings have the types of their annotations.

    Args:
        settings: Their values.
        hints: Annotations by the name of the setting; what has none is not looked at.
        name: Whose settings they are, for messages.

    Returns:
        The settings, where they have annotations as :func:`as_typed` makes them.

    Raises:
        TypeError: If one has another type.
    """
    typed = dict(settings)
    for key, value in settings.items():
        if key not in hints:
            continue
        typed[key] = as_typed(value, hints[key])
        if not fits(typed[key], hints[key]):
            kinds = ' or '.join(dict.fromkeys(_names(hints[key])))
            raise TypeError(f'{name} {key} must be {kinds}, got {value!r}')
    return typed


def checked(kind: type, settings: Mapping[str, Any], *given: Any) -> dict[str, Any]:
    """The settings of a class from a config, for its constructor.

    Args:
        kind: The class.
        settings: Its arguments by name; what is no setting of its own may be one of its parents'.
        *given: Arguments that come before them, and from no config.

    Returns:
        As of :func:`check_types`.

    Raises:
        TypeError: If it has no such setting, lacks one, or one has another type.
    """
    hints, others = parameters_of(kind)
    unknown = [name for name in settings if name not in hints]
    if unknown and not others:
        raise TypeError(f'{kind.__name__} has no settings {unknown}; there are {[*hints]}')
    typed = check_types(settings, hints, kind.__name__)
    try:
        inspect.signature(kind).bind(*given, **typed)
    except TypeError as error:
        raise TypeError(f'{kind.__name__}: {error}') from error
    return typed


def build_settings(kind: type[T], settings: Mapping[str, Any], name: str) -> T:
    """Make a dataclass of settings from a config.

    Args:
        kind: The dataclass.
        settings: Its fields; lists and dicts as plain ones.
        name: What the config calls them, for messages.

    Raises:
        TypeError: If there is no such setting, one is missing, or has another type.
        ValueError: If one is out of range.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(f'{name} must be a dict of settings, got {settings!r}')
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise TypeError(f'{name} has no settings {unknown}; there are {known}')
    for field in fields:
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and field.name not in settings:
            raise TypeError(f'{name} needs {field.name}, which is not given')
    return kind(**check_types(settings, hints_of(kind), name))


def change_settings(settings: T, changes: Mapping[str, Any], name: str) -> T:
    """The same settings with changes; as :func:`build_settings`."""
    return build_settings(type(settings), {**vars(settings), **changes}, name)


def typed(kind: type[T]) -> type[T]:
    """Let a class check what it is made with, for those that MMEngine builds and not mmgap.

    Args:
        kind: The class; its constructor then raises a TypeError as of :func:`check_types`.
    """
    plain: Any = vars(kind)['__init__']
    names = [*inspect.signature(plain).parameters][1:]

    @functools.wraps(plain)
    def check_and_make(self: Any, *args: Any, **kwargs: Any) -> None:
        hints, name = hints_of(plain), type(self).__name__
        given = check_types(dict(zip(names, args, strict=False)), hints, name)
        settings = check_types(kwargs, hints, name)
        plain(self, *given.values(), *args[len(names) :], **settings)

    kind.__init__ = check_and_make  # type: ignore[method-assign]
    return kind


def as_typed(value: Any, hint: Any) -> Any:
    """A value of a config as the code that reads it knows it; what fits no better stays as it is.

    NumPy's numbers and arrays become Python's, paths become text, and a whole number that is
    written as 1e3 becomes 1000.
    """
    if hint is Any:
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, os.PathLike) and fits(value, hint):
        return os.fspath(value)
    if isinstance(value, float) and value.is_integer() and not fits(value, hint):
        return int(value) if fits(int(value), hint) else value
    parts = [
        part
        for one in (typing.get_args(hint) if _kind(hint) is Union else [hint])
        for part in typing.get_args(one)
        if _kind(one) is list and part is not ...
    ]
    if isinstance(value, (list, tuple)) and parts:
        return type(value)(as_typed(one, Union[tuple(parts)]) for one in value)  # noqa: UP007
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config is what an annotation says; a list may stand for a tuple."""
    kind = _kind(hint)
    if kind is Union:
        return any(fits(value, one) for one in typing.get_args(hint))
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, (str, os.PathLike))
    if kind is types.NoneType:
        return value is None
    if kind is dict:
        return isinstance(value, Mapping) or (inspect.isclass(hint) and isinstance(value, hint))
    if kind is list:
        each = [one for one in typing.get_args(hint) if one is not ...]
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and len(value) == (_length(hint) or len(value))
            and (not each or all(any(fits(one, part) for part in each) for one in value))
        )
    return True


def hints_of(function: Any) -> dict[str, Any]:
    """The annotations of a function or class; none where only a type checker can read them."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        return {}


def parameters_of(kind: type) -> tuple[dict[str, Any], bool]:
    """What the constructor of a class takes by name, with what it passes on to its parents.

    Returns:
        Annotations by name, and whether there may be others too.
    """
    found: dict[str, Any] = {}
    for parent in kind.__mro__:
        own = vars(parent).get('__init__')
        if own is None:
            continue
        called = not found  # by the user; others by what is passed on
        hints, passes = hints_of(own), False
        for name, parameter in list(inspect.signature(own).parameters.items())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                passes = True
            elif called or parameter.default is not parameter.empty:
                found.setdefault(name, hints.get(name, Any))  # a parent's others are not the user's
        if not passes:
            return found, False
    return found, True


def _kind(hint: Any) -> Any:
    """One of :data:`NAMES`, Union, or None for what is not looked at."""
    origin = typing.get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return Union
    if origin in (None, types.NoneType):
        return types.NoneType
    if origin in (dict, Mapping) or dataclasses.is_dataclass(origin):
        return dict
    if origin in (list, tuple, Sequence):
        return list
    return origin if origin in NAMES else None


def _length(hint: Any) -> int | None:
    """How long a list must be; None for any length."""
    parts = typing.get_args(hint)
    return len(parts) if typing.get_origin(hint) is tuple and ... not in parts else None


def _names(hint: Any) -> list[str]:
    kind = _kind(hint)
    if kind is Union:
        return [name for one in typing.get_args(hint) for name in _names(one)]
    name = NAMES.get(kind, getattr(hint, '__name__', str(hint)))
    items = [_kind(one) for one in typing.get_args(hint) if kind is list]
    plural = {int: 'whole numbers', float: 'numbers', str: 'texts', dict: 'dicts'}
    many = f'{_length(hint) or ""} {plural[items[0]]}' if items and items[0] in plural else ''
    return [f'{name} of {many.strip()}' if many else name]
