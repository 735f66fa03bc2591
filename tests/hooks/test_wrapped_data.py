# SPDX-License-Identifier: Apache-2.0
"""Training data inside of wrappers: sources are what these show, in the hook and the tools."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.dataset import RepeatDataset
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from mmgap.datasets import SyntheticMixDataset
from mmgap.loop import Loop
from mmgap.loop import round as loop_module
from mmgap.loop.parts import build_sources
from mmgap.sources import SourceSet
from tests.support.pools import fill_pool
from tests.support.small_config import small_config


class EverySecond:
    """A wrapper as a user writes one."""

    def __init__(self, dataset) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.metainfo = self.dataset.metainfo

    def full_init(self) -> None:
        self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset) // 2

    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(2 * idx)

    def __getitem__(self, idx: int):
        return self.dataset[2 * idx]


class Passing:
    """It shows every second sample, and passes on what it is asked to what it wraps."""

    def __init__(self, dataset) -> None:
        self.dataset = DATASETS.build(dataset)

    def __len__(self) -> int:
        return len(self.dataset) // 2

    def __getitem__(self, idx: int):
        return self.dataset[2 * idx]

    def __getattr__(self, name: str):
        return getattr(self.__dict__['dataset'], name)


def wrapped(name: str, inner: dict) -> dict:
    return dict(
        plain=inner,
        kfold=dict(type='KFoldDataset', fold=0, num_splits=3, seed=1, dataset=inner),
        concat=dict(type='ConcatDataset', datasets=[inner, dict(inner, correlated=True)]),
        balanced=dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=inner),
        repeat=dict(type='RepeatDataset', times=3, dataset=inner),
        own=dict(type=EverySecond, dataset=inner),
    )[name]


def paths(sources) -> list[str]:
    return [sources.dataset.get_data_info(i)['img_path'] for i in range(len(sources))]


@pytest.mark.parametrize('name', ['plain', 'kfold', 'concat', 'balanced', 'repeat', 'own'])
def test_the_same_sources_in_the_hook_and_in_the_tools(name, data, tmp_path, monkeypatch):
    generator = SimpleNamespace(sources=lambda dataset: SourceSet(dataset, (16, 16)))
    monkeypatch.setattr(loop_module.TASK_UTILS, 'build', lambda config: generator)
    config = small_config(data, 'none', tmp_path)
    init_default_scope('mmpretrain')
    dataset = wrapped(name, config.train_dataloader.dataset)
    config.train_dataloader.dataset = dataset
    built = DATASETS.build(dataset)
    shown = [built.get_data_info(i)['img_path'] for i in range(len(built))]
    fill_pool(tmp_path / 'pool', 3)
    settings = dict(pool=str(tmp_path / 'pool'), mode='extend', budget=3)
    found = [Loop.from_config(config).sources]
    config.train_dataloader.dataset = dict(
        type='mmgap.SyntheticMixDataset', dataset=dataset, pool='none yet', budget=3
    )
    found += [Loop.from_config(config).sources]
    mix = SyntheticMixDataset(built, **settings)
    found += [build_sources(mix, generator)]
    assert mix.num_synthetic == 3 and 'prompt_id' in mix.get_data_info(len(mix) - 1)
    inside = dict(type='mmgap.SyntheticMixDataset', dataset=dataset, **settings)
    found += [build_sources(RepeatDataset(inside, times=2), generator)]
    for sources in found:
        assert paths(sources) == list(dict.fromkeys(shown))
        assert len(sources.load([0, len(sources) - 1])) == 2


def test_a_wrapper_that_does_not_tell_is_refused(data, tmp_path):
    init_default_scope('mmpretrain')
    dataset = Passing(small_config(data, 'none', tmp_path).train_dataloader.dataset)
    with pytest.raises(TypeError, match='Passing wraps .* and has no get_data_info'):
        build_sources(SyntheticMixDataset(dataset), None)


@pytest.mark.smoke
def test_training_on_folds(data, tiny_sd, tmp_path, monkeypatch):
    """The hook mixes around the wrapper, and no image of the fold held out is a source."""
    seen = []

    def watched(dataset, generator):
        seen.append(build_sources(dataset, generator))
        return seen[-1]

    monkeypatch.setattr(loop_module, 'build_sources', watched)
    config = small_config(data, tiny_sd, tmp_path)
    config.train_dataloader.dataset = wrapped('kfold', config.train_dataloader.dataset)
    config.train_cfg.max_epochs = 2
    hook = config.custom_hooks[0]
    hook.update(rounds=1, budget=4)
    hook.search.update(prompts_per_class=1, steps=2)
    Runner.from_cfg(config).train()
    held_out = DATASETS.build(dict(config.train_dataloader.dataset, test_mode=True))
    others = {held_out.get_data_info(i)['img_path'] for i in range(len(held_out))}
    assert len(others) == 6 and len(paths(seen[0])) == 12 and not others & set(paths(seen[0]))
    assert len(list((tmp_path / 'gap/pool/images').iterdir())) == 4
