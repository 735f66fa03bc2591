# SPDX-License-Identifier: Apache-2.0
"""Finding and reading configs, of either style: a ``type`` is a name, or the class itself."""

from __future__ import annotations

import ast
import copy
import difflib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

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


def is_old_name(path: Path) -> bool:
    """Whether a shipped config is another one by its old name, see :func:`finish_config`."""
    return '\nrenamed = ' in path.read_text(encoding='utf-8')


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
    current = [name for name, file in configs.items() if not is_old_name(file)]
    near = difflib.get_close_matches(path.stem, current, n=3, cutoff=0.6)
    near += [other for other in current if len(path.stem) > 2 and path.stem in other]
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
        SystemExit: If there is no such config, it cannot be read, or its ``gap_hook`` fits no hook.
    """
    try:
        path = find_config(name)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    if path != Path(name):  # there may also be a copy that was meant, in another folder
        print(f'config {os.fspath(name)}: {path}', file=sys.stderr, flush=True)
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # its code can fail in any way
        raise SystemExit(f'config {os.fspath(name)}: {config_fault(path, error)}') from error
    try:
        finish_config(config)  # first, so that what is typed of custom_hooks counts
        if changes:
            config.merge_from_dict(dict(changes))
            finish_config(config)
    except (TypeError, ValueError) as error:
        raise SystemExit(f'config {os.fspath(name)}: {error}') from error
    except KeyError as error:  # an index of a list, which the message prints
        text = str(error.args[0])
        raise SystemExit(
            f'config {os.fspath(name)}: --cfg-options {" ".join(changes or ())}: {text[:200]}'
        ) from error
    return config


def config_fault(path: Path, error: Exception) -> str:
    """What is wrong with a config that cannot be read, and in which line of which file."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, SyntaxError):
        # MMEngine reads the file before it compiles it, so that the error does not know its name.
        line, text = error.lineno, f'{error.msg}: {(error.text or "").strip()}'
        places = [] if error.filename in (None, '<unknown>', str(path)) else [error.filename]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.name == '<module>' and _is_config(frame, path)]
        line = own[-1].lineno if own else None
        places = [own[-1].filename] if own and not _same_file(own[-1].filename, path) else []
    where = [*places, *([f'line {line}'] if line else [])]
    return ': '.join([*([' '.join(where)] if where else []), f'{type(error).__name__}: {text}'])


def _is_config(frame: traceback.FrameSummary, path: Path) -> bool:
    return _same_file(frame.filename, path) or '/configs/' in Path(frame.filename).as_posix()


def _same_file(name: str, path: Path) -> bool:
    return os.path.realpath(name) == os.path.realpath(path)


class Changes(DictAction):
    """MMEngine's ``--cfg-options key=value …``; what is no such pair is said.

    MMEngine takes all spaces out of values, of ``a photo of {}`` too; here texts keep theirs.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Read the pairs."""
        strange = [value for value in values if '=' not in value]
        if strange:
            parser.error(f'{option} takes key=value …, got {" ".join(strange)}')
        spaced = [pair for pair in values if re.search(r'\s', pair.partition('=')[2].strip())]
        super().__call__(parser, namespace, [pair for pair in values if pair not in spaced], option)
        for pair in spaced:
            key, _, text = pair.partition('=')
            try:
                getattr(namespace, self.dest)[key] = self._spaced(text.strip())
            except ValueError:
                parser.error(
                    f'{option} {key}: texts with spaces and commas need quotes of their own, as in '
                    f"\"{key}='a, b'\" or \"{key}=['a b', 'c']\", got {text}"
                )

    def _spaced(self, text: str) -> Any:
        """A value with spaces: a text, or a list or text as Python has it; else as in MMEngine."""
        listed = text[0] in '[('
        if listed or text[0] in '\'"':
            with suppress(ValueError, SyntaxError):
                return ast.literal_eval(text)
        if not listed and ',' not in text:
            return text
        if re.search(r'[^\s,(\[]\s+[^\s,)\]]', text):  # not beside a comma or a bracket
            raise ValueError(text)
        return self._parse_iterable(text)


def work_dir_of(config: Config) -> str:
    """The work directory of a config that was read from a file: its own, or one by its name."""
    return config.get('work_dir') or os.path.join('work_dirs', Path(config.filename).stem)


def name_of(kind: Any) -> str:
    """The name of a ``type`` alone: ``'GAPHook'`` for ``'mmgap.GAPHook'`` and for the class."""
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return re.split(r'[./]', name)[-1]


def is_gap_hook(hook: Any) -> bool:
    """Whether an entry of ``custom_hooks`` is a config of GAPHook, or of a class made from it."""
    return is_hook(hook, 'GAPHook')


def is_hook(hook: Any, name: str) -> bool:
    """Whether an entry of ``custom_hooks`` is of a class of that name, or of one made from it."""
    kind = hook.get('type') if isinstance(hook, Mapping) else None
    classes = kind.__mro__ if isinstance(kind, type) else [kind]
    return name in map(name_of, classes)


def gap_hooks(config: MutableMapping[str, Any]) -> list[Any]:
    """The configs of GAPHook among a config's ``custom_hooks``; changing them changes it.

    They have the changes of ``gap_hook``, see :func:`finish_config`.
    """
    finish_config(config)
    return [hook for hook in config.get('custom_hooks') or () if is_gap_hook(hook)]


def one_gap_hook(config: MutableMapping[str, Any]) -> Any:
    """The config of the one GAPHook among a config's ``custom_hooks``.

    Raises:
        ValueError: If there is none, or several, or an InjectionHook beside it.
    """
    found = gap_hooks(config)
    if len(found) != 1:
        raise ValueError(
            f'custom_hooks must have one mmgap.GAPHook, {getattr(config, "filename", "it")} has '
            f'{len(found)}'
        )
    check_one_steers(['GAPHook', *('InjectionHook' for _ in injection_hooks(config))])
    return found[0]


def injection_hooks(config: Mapping[str, Any]) -> list[Any]:
    """The configs of InjectionHook among a config's ``custom_hooks``."""
    hooks = config.get('custom_hooks') or ()
    return [hook for hook in hooks if is_hook(hook, 'InjectionHook') and not is_gap_hook(hook)]


def check_one_steers(names: Sequence[str]) -> None:
    """See that one hook alone brings images into a training.

    Args:
        names: Classes of the hooks that would.

    Raises:
        ValueError: If there are several.
    """
    if len(names) > 1:
        raise ValueError(
            f'custom_hooks must have one mmgap.GAPHook or mmgap.InjectionHook, it has {len(names)} '
            f'({", ".join(names)}), which would write to one folder; leave one: a GAPHook draws '
            'its own pool, and more images by more rounds'
        )


def finish_config(config: MutableMapping[str, Any]) -> None:
    """Do what mmgap's own keys of a config ask for, and take them out.

    ``gap_hook`` changes settings of the one GAPHook in ``custom_hooks``, so that a config can
    inherit from another and change a number of its hook, which is in a list::

        _base_ = ['ap_resnet18_toybirds.py']
        gap_hook = dict(search=dict(steps=5))

    On the command line that is ``--cfg-options gap_hook.search.steps=5``. ``renamed`` is the new
    name of a config that was read by its old one.

    Args:
        config: The config, changed in place.

    Raises:
        ValueError: If there is a ``gap_hook``, but no GAPHook or several; or as for
            :func:`change_hook`.
        TypeError: As for :func:`change_hook`.
    """
    warn_renamed(config)
    config.pop('renamed', None)
    changes = config.get('gap_hook')
    if changes is not None:
        found = [hook for hook in config.get('custom_hooks') or () if is_gap_hook(hook)]
        if len(found) != 1:
            raise ValueError(
                'gap_hook changes settings of the one mmgap.GAPHook in custom_hooks, which has '
                f'{len(found)}; add or take out some, or set gap_hook=None'
            )
        (hook,) = found
        changed = change_hook(hook, changes)
        hook.clear()
        hook.update(changed)
    config.pop('gap_hook', None)


def warn_renamed(config: Mapping[str, Any]) -> None:
    """Warn of a config that was read by its old name, or inherits from one that was."""
    if config.get('renamed'):
        warnings.warn(
            f'{getattr(config, "filename", None) or "this config"}: it, or one that it inherits '
            f'from, is called {config["renamed"]} now; the old name goes with the next release',
            FutureWarning,
            stacklevel=3,
        )


def change_hook(hook: Mapping[str, Any], changes: Any) -> dict[str, Any]:
    """The settings of a GAPHook with the changes of a config's ``gap_hook``.

    They are merged as MMEngine merges ``--cfg-options``: dicts into dicts, unless they have
    ``_delete_=True``; a dict with the keys ``'0'``, ``'1'`` … changes entries of a list.

    Args:
        hook: The settings; not changed.
        changes: What ``gap_hook`` says.

    Raises:
        TypeError: If the changes are no dict, or have a dict where the settings have none.
        ValueError: If they change what is not the hook's settings, or an entry that a list lacks.
    """
    if not isinstance(changes, Mapping):
        raise TypeError(f'gap_hook must be a dict of settings of GAPHook, got {changes!r}')
    others = sorted({'type', 'priority', '_delete_'} & set(changes))
    if others:
        raise ValueError(f'gap_hook changes settings of a hook that is there, and not its {others}')
    whole = Config(dict(hook=dict(hook)))
    try:
        whole.merge_from_dict(dict(hook=copy.deepcopy(dict(changes))))
    except (TypeError, KeyError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        message = f'gap_hook does not fit the GAPHook in custom_hooks: {error.args[0]}'
        raise kind(message) from error
    _drop_delete(whole.hook)
    return whole.hook


def _drop_delete(settings: Any) -> None:
    """MMEngine leaves ``_delete_`` where there was nothing to delete."""
    if isinstance(settings, MutableMapping):
        settings.pop('_delete_', None)
        for part in settings.values():
            _drop_delete(part)
    elif isinstance(settings, (list, tuple)):
        for part in settings:
            _drop_delete(part)


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
