# SPDX-License-Identifier: Apache-2.0
"""Whether values of a config have the types that their settings are annotated with."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Union

NAMES: dict[Any, str] = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    types.NoneType: 'None',
    dict: 'a dict',
    list: 'a list',
}


def check_types(settings: Mapping[str, Any], hints: Mapping[str, Any], name: str) -> None:
    """See that settings have the types of their annotations.

    Args:
        settings: Their values.
        hints: Annotations by the name of the setting; what has none is not looked at.
        name: Whose settings they are, for messages.

    Raises:
        TypeError: If one has another type.
    """
    for key, value in settings.items():
        if key in hints and not fits(value, hints[key]):
            kinds = ' or '.join(dict.fromkeys(_names(hints[key])))
            raise TypeError(f'{name} {key} must be {kinds}, got {value!r}')


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


def _names(hint: Any) -> list[str]:
    kind = _kind(hint)
    if kind is Union:
        return [name for one in typing.get_args(hint) for name in _names(one)]
    name = NAMES.get(kind, getattr(hint, '__name__', str(hint)))
    items = [one for one in typing.get_args(hint) if kind is list and one in NAMES]
    plural = {int: 'whole numbers', float: 'numbers', str: 'texts', dict: 'dicts'}
    return [f'{name} of {plural[items[0]]}' if items and items[0] in plural else name]
