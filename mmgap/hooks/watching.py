# SPDX-License-Identifier: Apache-2.0
"""What a run shows in the backends of its visualizer: TensorBoard, W&B, MLflow, local files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.visualization import Visualizer

from mmgap.loop.contact_sheet import RoundPictures
from mmgap.search.progress import PromptProgress
from mmgap.sheet import draw_sheet

COUNTS = ('images', 'dropped', 'unselected', 'agreement', 'diversity', 'evaluations')


class VisualizerWatcher:
    """Passes the facts of a run to its visualizer; see :class:`mmgap.loop.Watcher`.

    Scalars of a search have its steps, all others the training iteration. A run that is resumed
    writes to files of its own, so that the few steps of a search that it takes again stand twice
    in no file.

    Args:
        visualizer: The Runner's; it may have no backends, and writes in the main process alone.
    """

    def __init__(self, visualizer: Visualizer) -> None:
        self.visualizer = visualizer

    def searched(self, round_index: int, step: int, prompts: Sequence[PromptProgress]) -> None:
        """The prompts' losses of a step of the search."""
        values: dict[str, float] = {}
        for progress in prompts:
            name = f'round_{round_index}/{_short(progress.prompt.id, round_index)}'
            for fact, history in (
                ('loss', progress.losses),
                ('attack', progress.attacks),
                ('accuracy', progress.hits),
            ):
                if history:  # one that starts again has none
                    values[f'{name}/{fact}'] = history[-1]
        self._scalars(values, step)

    def pictured(self, round_index: int, pictures: RoundPictures) -> None:
        """The round's contact sheet, and each prompt along its search."""
        self._image(f'gap_round_{round_index}', pictures.rows(), round_index)
        for id in pictures.development:
            name = f'gap_round_{round_index}_{_short(id, round_index)}'
            self._image(name, [pictures.row(id)], round_index)

    def evaluated(self, report: Mapping[str, Any] | None, iteration: int) -> None:
        """A group report: each group, the worst, the mean; all metrics where there are no groups.

        Args:
            report: What :func:`mmgap.loop.group_report` has made; None for no evaluation.
            iteration: Iterations of training before it.
        """
        if report is None:
            return
        values = {name: report.get(name) for name in ('worst_group', 'mean', 'adjusted')}
        values.update(report['groups'])
        if not report['groups']:
            values = report['metrics']
        self._scalars({f'{report["measure"]}/{k}': v for k, v in values.items()}, iteration)

    def finished_round(self, report: Mapping[str, Any], images: int, iteration: int) -> None:
        """Counts and seconds of a round, and all images so far.

        Args:
            report: The round's.
            images: Images that are trained on.
            iteration: Iterations of training before the round.
        """
        values = {f'round/{name}': report.get(name) for name in COUNTS}
        values |= {f'round/seconds/{name}': value for name, value in report['seconds'].items()}
        self._scalars({**values, 'images': images}, iteration)

    def injected(self, judged: Mapping[str, Any], iteration: int) -> None:
        """What the probe has found."""
        self._scalars({f'probe/{k}': judged.get(k) for k in ('generated', 'control')}, iteration)

    def timed(self, seconds: Mapping[str, float], iteration: int) -> None:
        """Seconds of all stages so far."""
        self._scalars({f'seconds/{name}': value for name, value in seconds.items()}, iteration)

    def _scalars(self, values: Mapping[str, float | None], step: int) -> None:
        known = {_tag(name): value for name, value in values.items() if _finite(value)}
        if known:
            self.visualizer.add_scalars(known, step=step)

    def _image(self, name: str, rows: Sequence[Any], step: int) -> None:
        # No slash: MMEngine's local backend makes no folders, and writes nothing then. The ending
        # is for MLflow, which takes the format from it.
        if rows:
            self.visualizer.add_image(f'{name}.png', np.array(draw_sheet(rows)), step=step)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _tag(name: str) -> str:
    """A name that all backends take; MLflow refuses other signs."""
    return 'gap/' + re.sub(r'[^\w/. -]', '_', name)


def _short(id: str, round_index: int) -> str:
    return id.removeprefix(f'r{round_index}-')
