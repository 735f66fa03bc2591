# SPDX-License-Identifier: Apache-2.0
"""What a work directory tells of its run, finished or not, also one of an older version."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmgap.manifest import MANIFEST
from mmgap.search import SearchCurve, read_curves

ROUND = re.compile(r'round_(\d+)')


@dataclass
class Round:
    """What is known of a round.

    Attributes:
        number: Its number, from 0.
        report: Its part of ``summary.json``; empty while it runs.
        prompts: What is known of each prompt, by id.
        curves: What each search has seen, by the prompt's id.
        samples: The lines of the pool's manifest that are this round's.
    """

    number: int
    report: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, SearchCurve] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def by_prompt(self) -> dict[str, list[dict[str, Any]]]:
        """The lines by the prompt's id; manifests have a fingerprint behind it, after an ``@``."""
        found: dict[str, list[dict[str, Any]]] = {}
        for sample in self.samples:
            found.setdefault(str(sample.get('prompt_id')).rpartition('@')[0], []).append(sample)
        return found


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        folder: Its ``gap`` folder.
        summary: The content of ``summary.json``; empty before the first round is over.
        finished: Whether training is over.
        rounds: All rounds that have begun.
        unread: Why something that is there cannot be shown.
    """

    folder: Path
    summary: dict[str, Any]
    finished: bool
    rounds: list[Round]
    unread: list[str]

    @property
    def name(self) -> str:
        """The name of its config, or of its folder where that is not known."""
        config = self.summary.get('config')
        return Path(str(config)).stem if config else self.folder.resolve().parent.name

    def group_report(self, when: str) -> dict[str, Any]:
        """The evaluation ``'before'`` or ``'after'``; empty where there is none."""
        return self.summary.get(when) or {}


def read_run(work_dir: str | Path) -> Run:
    """Read what a run has left.

    Args:
        work_dir: The work directory; it has a folder ``gap``.

    Raises:
        FileNotFoundError: If there is no such directory, or nothing of a run in it yet.
        ValueError: If ``summary.json``, a prompt's JSON or the manifest is damaged.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f'work directory {work_dir} does not exist')
    folder = work_dir / 'gap'
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{work_dir} has no folder gap: no run with mmgap.GAPHook or mmgap.InjectionHook has '
            'written there. Give the work directory itself'
        )
    path, summary = folder / 'summary.json', {}
    if path.is_file():
        summary = _json_object(path.read_text(), path)
    unread: list[str] = []
    # Older versions tell by the evaluation at the end.
    finished = bool(summary.get('finished', summary.get('after')))
    rounds = _rounds(folder, summary, finished, unread)
    if not summary and not rounds:
        raise FileNotFoundError(
            f'{folder} has neither a summary.json nor prompts or searches yet: the first round has '
            'not begun'
        )
    return Run(folder, summary, finished, rounds, unread)


def _rounds(
    folder: Path, summary: Mapping[str, Any], finished: bool, unread: list[str]
) -> list[Round]:
    found: dict[int, Round] = {}
    for number, report in enumerate(summary.get('rounds') or []):
        prompts = {str(prompt['id']): dict(prompt) for prompt in report.get('prompts') or []}
        found[number] = Round(number, report, prompts)
    begun = len(found) + (not finished)
    for path in sorted((folder / 'search').glob('round_*.safetensors')):
        number = _number(path)
        # Those of rounds that the run has not begun are of another run in the same folder.
        if not 0 <= number < begun:
            continue
        own = found.setdefault(number, Round(number))
        try:
            own.curves = {curve.id: curve for curve in read_curves(path)}
        except ValueError as error:
            unread.append(f'search curves of round {own.number}: {error}')
        for id in own.curves:
            own.prompts.setdefault(id, dict(id=id))
    for path in sorted((folder / 'prompts').glob('*.json')):
        for own in found.values():
            if path.stem in own.prompts:  # the summary may be older than the file
                about = _json_object(path.read_text(), path)
                own.prompts[path.stem] = {**about, **own.prompts[path.stem]}
    for sample in _manifest(folder / 'pool' / MANIFEST):
        if sample.get('round') in found:
            found[sample['round']].samples.append(sample)
    return [found[number] for number in sorted(found)]


def _number(path: Path) -> int:
    match = ROUND.fullmatch(path.stem)
    return int(match[1]) if match else -1


def _manifest(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a manifest; the images themselves may be gone by now."""
    if not path.is_file():
        return []
    complete = path.read_text().rpartition('\n')[0]  # a line may be being written right now
    return [
        _json_object(line, f'{path} line {number}')
        for number, line in enumerate(complete.splitlines(), start=1)
    ]


def _json_object(text: str, where: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f'{where} is not JSON: {error}') from error
    if not isinstance(value, dict):
        raise ValueError(f'{where} must hold a JSON object, got {type(value).__name__}')
    return value
