# SPDX-License-Identifier: Apache-2.0
"""Whether rounds can begin when they are due, shall begin, and have begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import gt, lt
from typing import Any

from mmengine.runner import Runner

from mmgap.loop import GAPSettings


@dataclass
class Position:
    """How far training is, in its own unit.

    Attributes:
        done: Finished epochs or iterations.
        length: All of them.
        unit: ``'epochs'`` or ``'iterations'``.
    """

    done: int
    length: int
    unit: str

    @classmethod
    def of(cls, runner: Runner, by_epoch: bool) -> Position:
        """Where a run is."""
        if by_epoch:
            return cls(runner.epoch, runner.max_epochs, 'epochs')
        return cls(runner.iter, runner.max_iters, 'iterations')


def check_plan(settings: GAPSettings, round_index: int, over: bool, position: Position) -> None:
    """See that all rounds that are left can run.

    Args:
        settings: Say when they are due.
        round_index: The next round.
        over: Whether no round is left.
        position: Where training begins or goes on.

    Raises:
        ValueError: If the last would start after training ends, or the next is due in the past.
    """
    last = settings.due(settings.rounds - 1)
    if last >= position.length:
        raise ValueError(
            f'round {settings.rounds - 1} would start after {last} {position.unit}, but training '
            f'ends after {position.length}; lower start, rounds or interval'
        )
    if not over and settings.due(round_index) < position.done:
        raise ValueError(
            f'round {round_index} was due after {settings.due(round_index)} {position.unit}, and '
            f'the run that is resumed has done {position.done}; give GAPHook a later start or '
            'interval'
        )


def plateaued(worst_groups: Sequence[float], rounds: int, lower_is_better: bool) -> str | None:
    """Why no further round shall begin; None if one shall.

    Args:
        worst_groups: Worst group on the validation data before each round so far and now.
        rounds: How many rounds may bring nothing.
        lower_is_better: Whether it is an error.
    """
    best_of, better = (min, lt) if lower_is_better else (max, gt)
    best = best_of(worst_groups[:-rounds], default=None)
    if best is None or better(best_of(worst_groups[-rounds:]), best):
        return None
    return f'worst group on val is {worst_groups[-1]:.3f}, it was {best:.3f} {rounds} rounds ago'


def rounds_missed(
    settings: GAPSettings, state: Mapping[str, Any], position: Position, stopped: bool
) -> dict[str, Any]:
    """The rounds that were due after training had ended, and why, for the summary.

    Args:
        settings: Say when they were due.
        state: GAPHook's.
        position: Where training ended.
        stopped: Whether a hook stopped it.
    """
    round_index, images = state['rounds_done'], state['images']
    count = settings.rounds - round_index
    why = (
        f'training ended after {position.done} of {position.length} {position.unit}, before round '
        f'{round_index}, which was due after {settings.due(round_index)}: {count} of '
        f'{settings.rounds} rounds were never run, and {images} images were made'
    )
    if stopped:
        why += '. A hook has stopped training, as EarlyStoppingHook does'
    return dict(count=count, why=f'{why}; lower start or interval')
