# SPDX-License-Identifier: Apache-2.0
"""What a case of :mod:`tests.soak.faults` works with, and the table of cases."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.litter import Litter
from tests.support.commands import Finished, run_command
from tests.support.miniature import draw_waterbirds
from tests.support.small_config import small_config
from tests.support.tiny import save_tiny_pipeline

# A training of one round and two epochs, whose round comes before the second.
SHORT = {
    'train_cfg.max_epochs': 2,
    'custom_hooks.0.rounds': 1,
    'custom_hooks.0.budget': 2,
    'custom_hooks.0.search.steps': 1,
    'custom_hooks.0.search.holdout': 1,
    'custom_hooks.0.search.images_per_prompt': 1,
    'custom_hooks.0.search.num_inference_steps': 1,
    'custom_hooks.0.synthesis.num_inference_steps': 1,
}
Act = Callable[['Stage'], None]
REPOSITORY = Path(__file__).parents[2]
TRACEBACK = 'Traceback (most recent call last)'


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: Of the function, for ``--only``.
        input: What is wrong, for the table.
        command: What it is given to.
        act: Gives it to mmgap, and raises AssertionError where that does the wrong thing.
    """

    name: str
    input: str
    command: str
    act: Act


CASES: dict[str, Case] = {}


def case(input: str, command: str, name: str = '') -> Callable[[Act], Act]:
    """Put a function into :data:`CASES`, by its own name or another."""

    def add(act: Act) -> Act:
        one = Case(name or act.__name__, input, command, act)
        if one.name in CASES:
            raise ValueError(f'there are two cases {one.name}')
        CASES[one.name] = one
        return act

    return add


class Shared:
    """Models and data that cases share, and none may change; each is made when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def sd(self) -> Path:
        """A tiny Stable Diffusion."""
        return self.made('sd', save_tiny_pipeline)

    @functools.cached_property
    def birds(self) -> Path:
        """A miniature of Waterbirds with masks: 10 images to train on, 8 to test on."""
        return self.made('birds', lambda folder: draw_waterbirds(folder, per_group=2))

    @functools.cached_property
    def checkpoint(self) -> Path:
        """A checkpoint of the model of :meth:`Stage.config`."""
        import torch
        from mmengine.config import Config

        from mmgap.configs import set_scope
        from mmgap.targets.load import load_model

        def make(folder: Path) -> None:
            folder.mkdir(parents=True)
            config = Config.fromfile(Stage(folder, self).config())
            set_scope(config)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                state = load_model(config).state_dict()
            torch.save(dict(state_dict=state, meta={}), folder / 'last.pth')

        return self.made('model', make) / 'last.pth'

    @functools.cached_property
    def pool(self) -> Path:
        """A pool of two images that ``generate`` draws for the text 'a b'."""

        def make(folder: Path) -> None:
            folder.mkdir(parents=True)
            stage = Stage(folder, self)
            options = ('--text', 'a b', '--num', 2, '--out', folder / 'pool')
            run_command('mmgap', 'generate', stage.config(), *options).check()

        return self.made('drawn', make) / 'pool'

    def made(self, name: str, make: Callable[[Path], Any]) -> Path:
        """A folder that is made when it is asked for, and then kept."""
        path, unfinished = self.folder / name, self.folder / f'{name}.unfinished'
        if not path.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(path)
        return path


class Stage:
    """A folder of a case's own, and how it gives things to mmgap.

    Args:
        folder: Empty.
        shared: Models and data.

    Attributes:
        said: What mmgap has said at last.
        litter: What it has left that it should not have.
    """

    def __init__(self, folder: Path, shared: Shared) -> None:
        self.folder, self.shared = folder, shared
        self.said, self.litter = '', list[str]()

    def birds(self) -> Path:
        """The miniature of Waterbirds, to be changed."""
        return Path(shutil.copytree(self.shared.birds, self.folder / 'birds'))

    def copy(self, path: Path, name: str) -> Path:
        """A copy of what is shared."""
        return Path(shutil.copytree(path, self.folder / name))

    def config(self, data: Path | None = None, /, text: str = '', **changes: Any) -> Path:
        """A config file of a short training with a GAPHook.

        Args:
            data: Waterbirds; the miniature by default.
            text: What is added at its end.
            **changes: By dotted path, ``hook`` for that of the GAPHook, and ``__`` for the dots.
        """
        config = small_config(data or self.shared.birds, self.shared.sd, self.folder / 'run')
        named = {_dotted(name): value for name, value in changes.items()}
        config.merge_from_dict(SHORT)
        for name, value in named.items():
            _set(config, name.split('.'), value)
        path = self.folder / 'config.py'
        config.dump(path)
        path.write_text(
            f"nan = float('nan')\n{path.read_text(encoding='utf-8')}\n{text}", encoding='utf-8'
        )
        return path

    def summary(self) -> dict[str, Any]:
        """``gap/summary.json`` of the training."""
        return json.loads((self.folder / 'run' / 'gap' / 'summary.json').read_text())

    def run(self, command: str, *arguments: object) -> Finished:
        """Run ``mmgap COMMAND``, and look at what is left."""
        return self.watch(lambda: run_command('mmgap', command, *arguments, cwd=self.folder))

    def watch(self, act: Callable[[], Finished]) -> Finished:
        """Do something that may leave litter."""
        litter = Litter(self.folder)
        done = act()
        self.litter += litter.left()
        self.said = done.message or last_words(done.output)
        return done

    def refuses(self, command: str, *arguments: object, says: Iterable[object]) -> Finished:
        """A command that must end with a message that has these words."""
        return self.check_refused(self.run(command, *arguments), says)

    def accepts(self, command: str, *arguments: object, says: Iterable[object] = ()) -> Finished:
        """A command that must succeed; ``says`` is anywhere in what it prints."""
        done = self.run(command, *arguments)
        assert done.code == 0, f'ended with {done.code}: {done.output[-3000:]}'
        missing = [str(word) for word in says if str(word) not in done.output]
        assert not missing, f'does not say {missing}: {done.output[-3000:]}'
        return done

    def check_refused(self, done: Finished, says: Iterable[object]) -> Finished:
        """See that a command has ended with a message that has these words."""
        assert done.code != 0, f'it went well: {done.output[-2000:]}'
        assert TRACEBACK not in done.output, done.output[-4000:]
        missing = [str(word) for word in says if str(word) not in self.said]
        assert not missing, f'does not say {missing}: {self.said}'
        return done

    def checks_wrong(self, *arguments: object, says: Iterable[object]) -> Finished:
        """``mmgap check`` that must find something wrong and say these words of it."""
        done = self.run('check', *arguments)
        wrong = [line for line in done.output.splitlines() if line.startswith('WRONG')]
        self.said = ' '.join(wrong) or self.said
        return self.check_refused(done, says)

    def raises(self, act: Callable[[], Any], says: Iterable[object]) -> None:
        """A call of a public class that must raise an error with these words."""
        litter = Litter(self.folder)
        try:
            act()
        except (ValueError, TypeError, OSError, KeyError) as error:
            self.said = str(error)
        else:
            raise AssertionError('it went well')
        finally:
            self.litter += litter.left()
        missing = [str(word) for word in says if str(word) not in self.said]
        assert not missing, f'does not say {missing}: {self.said}'

    def forked(self, act: Callable[[], Finished]) -> Finished:
        """Do something in a process of its own, which it may harm; code -9 if that was killed."""
        context = multiprocessing.get_context('fork')
        here, there = context.Pipe(duplex=False)

        def child() -> None:
            printed = io.StringIO()
            with redirect_stdout(printed), redirect_stderr(printed):
                try:
                    done = act()
                except BaseException:
                    done = Finished(1, traceback.format_exc())
            there.send((done.code, done.output, done.message))
            os._exit(0)

        def wait() -> Finished:
            process = context.Process(target=child)
            process.start()
            there.close()
            try:
                done = Finished(*here.recv())
            except EOFError:
                done = Finished(-9, 'killed')
            process.join(timeout=60)
            return done

        return self.watch(wait)


def last_words(output: str) -> str:
    """The message that a command has ended with; its last lines where it has none."""
    lines = output.strip().splitlines()
    begun = [i for i, line in enumerate(lines) if re.match(r'(mmgap( \w+)?|config .+?): ', line)]
    return '\n'.join(lines[begun[-1] :] if begun else lines[-1:])


def run_case(one: Case, folder: Path, shared: Shared) -> Mapping[str, Any]:
    """Do a case, and say how it went."""
    folder.mkdir(parents=True)
    stage, began, fault = Stage(folder, shared), time.process_time(), None
    started = time.time()
    try:
        one.act(stage)
    except Exception as error:
        fault = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
    if stage.litter and fault is None:
        fault = f'leaves {", ".join(stage.litter)}'
    return dict(
        name=one.name,
        input=one.input,
        command=one.command,
        says=without_places(stage.said, folder, folder.parent.parent, REPOSITORY),
        litter=stage.litter,
        fault=fault,
        cpu_seconds=round(time.process_time() - began, 2),
        seconds=round(time.time() - started, 2),
    )


def without_places(text: str, *folders: Path) -> str:
    """A message without the folders of the machine that it was said on; inner ones come first."""
    for place in (*map(str, folders), sys.prefix, sys.base_prefix):
        text = text.replace(place, '…')
    return text


def _dotted(name: str) -> str:
    parts = name.split('__')
    return '.'.join(['custom_hooks', '0', *parts[1:]] if parts[0] == 'hook' else parts)


def _set(part: Any, names: list[str], value: Any) -> None:
    """Set what is at a path in a config, of whatever type."""
    *parents, last = (int(name) if name.isdigit() else name for name in names)
    for name in parents:
        if isinstance(part, dict) and name not in part:
            part[name] = {}
        part = part[name]
    part[last] = value
