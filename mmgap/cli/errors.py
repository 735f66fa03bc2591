# SPDX-License-Identifier: Apache-2.0
"""How a command ends that cannot go on: what is wrong and the way out, without a traceback.

An error that somebody wrote a message for is for the person at the keyboard; one that nobody
foresaw is for who mends mmgap, and one of a user's own class for who mends that: both keep their
traceback. With ``MMGAP_DEBUG=1`` all keep it.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

DEBUG = 'MMGAP_DEBUG'
PACKAGE = Path(__file__).parents[1]
# What such errors say is of use beside their place alone.
BUGS = (AttributeError, NameError, IndexError)
WORKER = 'Original Traceback (most recent call last):\n'  # in what PyTorch's loaders raise


def run(command: Callable[[], None]) -> None:
    """Run the function of a command.

    Raises:
        SystemExit: As the command ends, or with the message of an error that has one.
        Exception: An error that nobody wrote a message for; any error with ``MMGAP_DEBUG`` set.
    """
    debug = os.environ.get(DEBUG, '0') not in ('', '0')
    try:
        command()
    except SystemExit as ended:
        if debug and ended.__cause__ is not None:
            traceback.print_exception(ended.__cause__)
        raise
    except Exception as raised:
        error = cause(raised)
        if debug or not is_told(error):
            raise
        notes = ''.join(f'\n{note}' for note in getattr(error, '__notes__', ()))
        raise SystemExit(f'{Path(sys.argv[0]).name}: {message(error)}{notes}') from raised


def cause(error: Exception) -> Exception:
    """What a hook has raised, where MMEngine has wrapped it."""
    inner = error.__context__
    if isinstance(inner, TypeError) and str(error).startswith(f'{inner} in <'):
        return inner
    return error


def is_told(error: Exception) -> bool:
    """Whether the message of an error was written for whoever gave the input."""
    if isinstance(error, OSError) and error.filename:
        return True  # the system's own messages name the path
    file, line = _origin(error)
    # Those of asserts in the toolboxes name the value.
    told = isinstance(error, (OSError, AssertionError)) or line.startswith('raise')
    if not told or not str(error):
        return False
    if _is_ours(file):
        return True
    # What a user's own class says is for who mends it, as is a name or an index that is wrong.
    bare = isinstance(error, KeyError) and ' ' not in str(error.args[0])
    return _is_installed(file) and not bare and not isinstance(error, BUGS)


def message(error: Exception) -> str:
    """The message of an error; one from outside mmgap with its type and how to see the rest."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    _, worker, rest = text.rpartition(WORKER)
    if worker:
        lines = rest.splitlines()
        last = max((i for i, line in enumerate(lines) if line.startswith('  ')), default=-1)
        text = '\n'.join(lines[last + 1 :]) or text
    hint = f'\n({DEBUG}=1 before the command shows where this comes from)'
    if _is_ours(_origin(error)[0]) and not worker:
        # Where all that a library raised is taken for a wrong input, it may be a bug there.
        return text + hint * isinstance(error.__cause__, BUGS)
    kind = '' if worker else f'{type(error).__name__}: '
    return f'{kind}{text}{hint}'


def _origin(error: Exception) -> tuple[str, str]:
    """File and line that an error comes from; of one in a loader's worker, those there."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    if WORKER in str(error):
        found = re.findall(r'^  File "(.+)", line (\d+), in ', str(error), re.MULTILINE)
        frames += [(file, int(number)) for file, number in found]
    file, number = frames[-1] if frames else ('', 0)
    return file, linecache.getline(file, number).strip()


def _is_ours(file: str) -> bool:
    return PACKAGE in Path(file).parents


def _is_installed(file: str) -> bool:
    """Whether a file is of an installed package, or of Python."""
    folders = Path(file).parents
    return (
        file.startswith('<frozen ')
        or Path(os.__file__).parent in folders
        or any(folder.name in ('site-packages', 'dist-packages') for folder in folders)
    )
