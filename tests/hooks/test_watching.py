# SPDX-License-Identifier: Apache-2.0
"""What a run shows in the backends of its visualizer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mmgap.hooks.watching import VisualizerWatcher
from mmgap.loop.contact_sheet import RoundPictures
from mmgap.loop.report import group_report
from mmgap.report import write_page
from tests.support.pools import picture
from tests.support.small_config import small_config


class Stopped(Exception):
    """In place of a kill."""


def local_scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of what the local backends below a folder have of the loop."""
    found = []
    for path in sorted(folder.rglob('scalars.json')):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            found += [(k, values['step'], v) for k, v in values.items() if k.startswith('gap/')]
    return found


def test_a_resumed_run_in_tensorboard(as_whole_run, data, tiny_sd, tmp_path, monkeypatch):
    """Stopped in its second step, and gone on with from the first, it is in two sets of files."""
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(resume: bool) -> None:
        config = small_config(data, tiny_sd, tmp_path)
        config.train_cfg.max_epochs = 1
        config.custom_hooks[0].update(start=0, rounds=1, budget=4)
        backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
        config.visualizer = dict(type='Visualizer', vis_backends=backends)
        config.resume = resume
        runner = Runner.from_cfg(config)
        runner._experiment_name += '_resumed' if resume else ''
        runner.train()

    tell = VisualizerWatcher.searched

    def stop(self, round_index, step, prompts):
        tell(self, round_index, step, prompts)
        if step == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(VisualizerWatcher, 'searched', stop)
        with pytest.raises(Stopped):
            run(resume=False)
    assert not (tmp_path / 'gap' / 'report.html').exists()
    assert 'This round is not over' in write_page(tmp_path).read_text()
    run(resume=True)
    parts = []
    for events in sorted(tmp_path.rglob('events.out.tfevents*')):
        parts.append(EventAccumulator(str(events)))
        parts[-1].Reload()
    losses = [
        [(point.step, point.value) for point in part.Scalars('gap/round_0/landbird-0/loss')]
        for part in parts
    ]
    # The checkpoint is of the first step: the second is taken again, to the same loss.
    assert [[step for step, _ in own] for own in losses] == [[1, 2], [2, 3]]
    assert losses[0][1] == losses[1][0]
    last, first = parts[-1], parts[0]
    tags = {tag for tag in last.Tags()['scalars'] if tag.startswith('gap/')}
    assert {f'gap/round_0/{id}/accuracy' for id in ('landbird-0', 'waterbird-0')} <= tags
    assert {'gap/seconds/search', 'gap/seconds/total', 'gap/round/seconds/search'} <= tags
    summary = json.loads((tmp_path / 'gap' / 'summary.json').read_text())
    before, after = summary['before'], summary['after']
    assert summary['finished'] and summary['settings']['search']['steps'] == 3
    for name, value in {**after['groups'], 'worst_group': after['worst_group']}.items():
        points = [*first.Scalars(f'gap/accuracy/{name}'), *last.Scalars(f'gap/accuracy/{name}')]
        assert [point.step for point in points] == [0, 3]  # iterations
        old = before['groups'].get(name, before['worst_group'])
        assert [point.value for point in points] == pytest.approx([old, value])
    assert [(p.step, p.value) for p in last.Scalars('gap/images')] == [(0, 4.0)]
    names = ['gap_round_0.png', 'gap_round_0_landbird-0.png', 'gap_round_0_waterbird-0.png']
    assert last.Tags()['images'] == names
    for name in names:
        assert last.Images(name)[0].width > 100
        assert list(tmp_path.rglob(f'vis_image/{name}_0.png'))
    local = local_scalars(tmp_path)
    assert {tag for tag, *_ in local} == {
        tag for part in parts for tag in part.Tags()['scalars'] if tag.startswith('gap/')
    }
    twice = {key for key, n in Counter((tag, step) for tag, step, _ in local).items() if n > 1}
    assert {step for _, step in twice} == {2} and all('gap/round_0/' in tag for tag, _ in twice)
    page = (tmp_path / 'gap' / 'report.html').read_text()
    assert 'landbird-water' in page and 'r0-waterbird-0' in page and 'not over' not in page


def test_every_round_and_group_of_a_whole_run_is_told_once(whole_run):
    local = local_scalars(whole_run.work_dir)
    counts = Counter((tag, step) for tag, step, _ in local)
    assert set(counts.values()) == {1}
    steps = {tag: sorted(s for t, s in counts if t == tag) for tag, _ in counts}
    assert steps['gap/round_0/landbird-0/loss'] == steps['gap/round_1/landbird-0/loss'] == [1, 2, 3]
    assert steps['gap/accuracy/worst_group'] == [3, 15]
    assert steps['gap/images'] == [3, 9]
    assert sorted(value for tag, _, value in local if tag == 'gap/images') == [4, 8]


def test_without_backends_nothing_happens(tmp_path):
    watcher = VisualizerWatcher(Visualizer(vis_backends=None))
    watcher.searched(0, 1, [SimpleNamespace(prompt=SimpleNamespace(id='r0-a'), losses=[1.0])][:0])
    watcher.evaluated(None, 3)
    watcher.evaluated(group_report({'accuracy/top1': 91.0}), 3)
    pictures = RoundPictures([picture(0)], [picture(1)], ['images/000000.png'], ['a'])
    watcher.pictured(0, pictures)


class Backend:
    """Notes what a visualizer is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[dict, int]] = []
        self.images: dict[str, np.ndarray] = {}

    def add_scalars(self, values, step=0, **_) -> None:
        self.scalars.append((values, step))

    def add_image(self, name, image, step=0) -> None:
        self.images[name] = image


def test_only_finite_numbers_under_names_that_all_backends_take():
    backend = Backend()
    watcher = VisualizerWatcher(backend)
    progress = SimpleNamespace(prompt=SimpleNamespace(id='r1-a-0'), losses=[2.0, 1.0])
    progress.attacks, progress.hits = [1.0, float('nan')], [float('nan')] * 2
    again = SimpleNamespace(prompt=SimpleNamespace(id='r1-a-1'), losses=[], attacks=[], hits=[])
    watcher.searched(1, 2, [progress, again])
    watcher.searched(1, 3, [again])
    watcher.evaluated(group_report({'f1_macro': 0.5, 'f1/Käfer <1>': 0.25}), 7)
    watcher.injected(dict(mode='mix', generated=None, control=None), 7)
    assert backend.scalars == [
        ({'gap/round_1/a-0/loss': 1.0}, 2),
        ({'gap/f1/worst_group': 0.25, 'gap/f1/mean': 0.5, 'gap/f1/Käfer _1_': 0.25}, 7),
    ]
    pictures = RoundPictures(development={'r1-a-0': [picture(0)]}, titles={'r1-a-0': 'x'})
    pictures.steps['r1-a-0'] = []
    watcher.pictured(1, pictures)
    assert list(backend.images) == ['gap_round_1.png', 'gap_round_1_a-0.png']
    assert all(image.dtype == np.uint8 for image in backend.images.values())
