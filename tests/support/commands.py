# SPDX-License-Identifier: Apache-2.0
"""Commands in this process: one of its own imports torch, diffusers and MMPretrain anew."""

from __future__ import annotations

import contextlib
import io
import os
import random
import runpy
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        code: its exit status; 1 after an error.
        output: all that it printed, with what it exited with or the traceback at the end.
        message: what it exited with; empty if that was a number, or an error.
    """

    code: int
    output: str
    message: str = ''

    def check(self) -> str:
        """The output of a command that must have succeeded."""
        assert self.code == 0, self.output[-6000:]
        return self.output


def run_command(name: str, *arguments: object, cwd: Path = ROOT) -> Finished:
    """Run ``tools/NAME.py`` as ``python tools/NAME.py ARGUMENTS`` would, but in this process.

    Args:
        name: path below ``tools``, without suffix; or ``mmgap``, for ``python -m mmgap``.
        arguments: the command line, as strings.
        cwd: where it runs.
    """
    path = ROOT / ('mmgap/__main__.py' if name == 'mmgap' else f'tools/{name}.py')
    printed, code, message = io.StringIO(), 0, ''
    with contextlib.ExitStack() as stack:
        stack.enter_context(process_state())
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        sys.argv[:] = [str(path), *map(str, arguments)]
        try:
            runpy.run_path(str(path), run_name='__main__')
        except SystemExit as ended:
            code = ended.code or 0
            if not isinstance(code, int):
                code, message = 1, str(ended)
                print(ended, file=printed)
        except Exception:
            code = 1
            traceback.print_exc(file=printed)
    return Finished(code, printed.getvalue(), message)


@contextlib.contextmanager
def process_state() -> Iterator[None]:
    """Begin as a process does, without MMEngine's named instances, and leave all as it was.

    What is put back: these instances, the states of random numbers, threads and numeric switches
    of torch, what it loads without leave, filters of warnings, ``os.environ``, ``sys.argv`` and
    ``sys.path``.
    """
    managers = list(dict.fromkeys(_subclasses(ManagerMixin)))
    instances = [manager._instance_dict for manager in managers]
    randoms = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    switches = [
        (place, switch, getattr(place, switch))
        for place, names in (
            (torch.backends.cudnn, ('allow_tf32', 'benchmark', 'deterministic')),
            (torch.backends.cuda.matmul, ('allow_tf32',)),
        )
        for switch in names
    ]
    safe = torch.serialization.get_safe_globals()
    environment, argv, path = dict(os.environ), list(sys.argv), list(sys.path)
    for manager in managers:
        manager._instance_dict = OrderedDict()
    # A command must itself allow what it loads.
    torch.serialization.clear_safe_globals()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        # MMEngine keeps its loggers' files open.
        for manager, before in zip(managers, instances, strict=True):
            for instance in manager._instance_dict.values():
                for handler in getattr(instance, 'handlers', ()):
                    handler.close()
            manager._instance_dict = before
        random.setstate(randoms[0])
        np.random.set_state(randoms[1])
        torch.set_rng_state(randoms[2])
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        for place, switch, value in switches:
            setattr(place, switch, value)
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(safe)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:], sys.path[:] = argv, path


def _subclasses(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)
