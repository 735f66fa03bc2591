# SPDX-License-Identifier: Apache-2.0
"""Finding and reading configs, of either style: a ``type`` is a name, or the class itself."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config
from mmengine.registry import init_default_scope

Settings = TypeVar('Settings')
PACKAGE = Path(__file__).parent


def shipped_folder() -> Path:
    """The folder of the configs that come with mmgap.

    In an installed wheel that is ``mmgap/.mim/configs``, where OpenMIM looks too; in a checkout,
    and in an editable install of one, ``configs`` beside the package.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for root in (PACKAGE / '.mim', PACKAGE.parent):
        # site-packages may have a folder of this name from anybody.
        if (root / 'model-index.yml').is_file():
            return root / 'configs'
    raise FileNotFoundError(
        f'{PACKAGE} was installed without its configs; install mmgap with pip, or give a file'
    )


def shipped_configs() -> dict[str, Path]:
    """The files of the shipped configs by name: their path in the folder, without ``.py``.

    What only others inherit from (``_base_``) is left out.
    """
    folder = shipped_folder()
    paths = [path.relative_to(folder) for path in folder.rglob('*.py')]
    shown = [path for path in paths if not any(part.startswith(('_', '.')) for part in path.parts)]
    return {path.with_suffix('').as_posix(): folder / path for path in sorted(shown)}


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file that a user means: one of their own, or else a shipped config.

    Args:
        name: A path, or the name of a shipped config, with or without ``.py``.

    Raises:
        FileNotFoundError: If it is neither; the message names shipped ones like it.
    """
    path = Path(name)
    return path if path.is_file() else shipped_config(name)


def shipped_config(name: str | os.PathLike[str]) -> Path:
    """The file of a shipped config; as :func:`find_config`, which looks for files first."""
    path, configs = Path(name), shipped_configs()
    known = configs.get(path.as_posix().removesuffix('.py'))
    if known is not None:
        return known
    near = difflib.get_close_matches(path.stem, [*configs], n=3, cutoff=0.6)
    near += [other for other in configs if len(path.stem) > 2 and path.stem in other]
    listed = f'near it are {", ".join([*dict.fromkeys(near)][:5])}; ' if near else ''
    raise FileNotFoundError(
        f'config {os.fspath(name)!r} does not exist, and mmgap ships none of this name; '
        f'{listed}`mmgap configs` lists all'
    )


def read_config(name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Config:
    """Read the config that a command is given, and say which file that is if it is a shipped one.

    Args:
        name: As :func:`find_config` takes it.
        changes: What ``--cfg-options`` changes.

    Raises:
        SystemExit: If there is no such config.
    """
    try:
        path = find_config(name)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    if path != Path(name):  # there may also be a copy that was meant, in another folder
        print(f'config {os.fspath(name)}: {path}', file=sys.stderr, flush=True)
    config = Config.fromfile(str(path))
    if changes:
        config.merge_from_dict(dict(changes))
    return config


def work_dir_of(config: Config) -> str:
    """The work directory of a config that was read from a file: its own, or one by its name."""
    return config.get('work_dir') or os.path.join('work_dirs', Path(config.filename).stem)


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
