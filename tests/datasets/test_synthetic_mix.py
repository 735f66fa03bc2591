# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.runner import Runner

from mmgap.compat import restart_workers
from mmgap.datasets import SyntheticMixDataset
from mmgap.datasets.synthetic_mix import batch_of, mixes_in
from mmgap.pool import SamplePool
from mmgap.registry import DATASETS
from tests.support.pools import ABOUT, fill_pool, picture


def pack(info: dict) -> dict:
    """What a pipeline would make of an info: here, where it is from and what was drawn."""
    draws = (random.random(), np.random.random(), torch.rand(1).item())
    return dict(path=info['img_path'], made='prompt_id' in info, draws=draws)


class Real(BaseDataset):
    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self) -> list[dict]:
        return [dict(img_path=f'real{i}', gt_label=i % 2) for i in range(40)]

    def get_cat_ids(self, idx: int) -> list[int]:
        return [int(idx % 7 > 4)]  # other than half and half


def real(**kwargs) -> dict:
    return dict(type=Real, pipeline=[pack], **kwargs)


@pytest.fixture
def pool(tmp_path):
    fill_pool(tmp_path / 'pool', 10)
    return str(tmp_path / 'pool')


# MMEngine's wrapper contract, side by side with RepeatDataset


@pytest.mark.parametrize('mode', ['replace', 'extend'])
def test_contract_is_that_of_repeat_dataset(mode):
    mix = SyntheticMixDataset(real(), mode=mode, ratio=0.25)
    repeated = RepeatDataset(real(), times=1)
    assert mix.metainfo == repeated.metainfo
    mix.metainfo['classes'] = ()
    assert mix.metainfo['classes'] == ('a', 'b')  # a copy
    for i in (0, 7, 39):
        assert mix.get_data_info(i) == repeated.get_data_info(i)
        assert mix[i]['path'] == repeated[i]['path']
    for wrapper in (mix, repeated):
        for call in (wrapper.get_subset, wrapper.get_subset_):
            with pytest.raises(NotImplementedError, match='get_subset'):
                call([0, 1])
    assert len(mix) == {'replace': 40, 'extend': 53}[mode]
    assert mix.get_data_info(len(mix) - 1)['img_path'] == f'real{(len(mix) - 1) % 40}'


@pytest.mark.parametrize('use', [len, lambda d: d.get_data_info(3), lambda d: d[3]])
def test_lazy_init(use, pool):
    make = (
        lambda: SyntheticMixDataset(real(lazy_init=True), pool, lazy_init=True),
        lambda: RepeatDataset(real(lazy_init=True), times=1, lazy_init=True),
    )
    for wrapper in (make[0](), make[1]()):
        assert not wrapper._fully_initialized and not wrapper.dataset._fully_initialized
        use(wrapper)
        assert wrapper._fully_initialized and wrapper.dataset._fully_initialized
    mix = make[0]()
    mix.full_init()
    mix.full_init()
    assert mix.num_synthetic == 10


def test_a_dataset_or_a_config(pool):
    config = dict(type='mmgap.SyntheticMixDataset', pool=pool, dataset=real())
    dataset = Real(pipeline=[pack])
    assert len(DATASETS.build(config)) == len(SyntheticMixDataset(dataset)) == 40
    assert len(RepeatDataset(config, times=2)) == 80
    with pytest.raises(TypeError, match='list has no full_init, get_data_info, metainfo'):
        SyntheticMixDataset([dataset])


def test_around_other_wrappers(pool):
    """Generated images go through the pipeline of what is inside, if that is one."""
    parts = [real(), real()]
    mix = SyntheticMixDataset(dict(type='ConcatDataset', datasets=parts), pool, mode='extend')
    assert len(mix) == 160 and mix[79]['path'] == 'real39' and mix[80]['made']
    mix = SyntheticMixDataset(RepeatDataset(real(), times=2), pool, ratio=0.2, mode='extend')
    assert len(mix) == 100 and mix[79]['path'] == 'real39' and mix[80]['made']
    parts[1] = dict(parts[1], pipeline=[pack, pack])
    with pytest.raises(ValueError, match='inside ConcatDataset have 2 different pipelines'):
        SyntheticMixDataset(dict(type='ConcatDataset', datasets=parts))
    with pytest.raises(NotImplementedError, match='put what takes the subset inside'):
        mix.get_subset([1])


# Length, ratio, modes


@pytest.mark.parametrize('ratio', [-0.1, 1, 1.5, float('nan')])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r'ratio must be in \[0, 1\], below 1 to extend, got'):
        SyntheticMixDataset(real(), ratio=ratio, mode='extend')


def test_bad_input():
    with pytest.raises(ValueError, match="mode must be one of .* got 'add'"):
        SyntheticMixDataset(real(), mode='add')
    with pytest.raises(ValueError, match="paired=True needs mode='replace', got 'extend'"):
        SyntheticMixDataset(real(), mode='extend', paired=True)
    with pytest.raises(ValueError, match='no pool yet'):
        SyntheticMixDataset(real()).refresh()
    with pytest.raises(FileNotFoundError, match="pool='nowhere' has no samples"):
        SyntheticMixDataset(real(), pool='nowhere', budget=5)


@pytest.mark.parametrize('mode, length', [('replace', 40), ('extend', 133)])
def test_length_stays_however_the_pool_grows(tmp_path, mode, length):
    mix = SyntheticMixDataset(real(), str(tmp_path), ratio=0.7, mode=mode)
    for count in (0, 3, 200):
        fill_pool(tmp_path, count)
        mix.refresh()
        assert len(mix) == length and mix.num_synthetic == count
        items = [mix[i] for i in range(length)]
        if count == 0:
            assert not any(item['made'] for item in items)
    mix.budget = 5
    mix.refresh()
    assert len(mix) == length and mix.num_synthetic == 5


def test_extend_appends_the_pool_in_turn(pool):
    mix = SyntheticMixDataset(real(), pool, ratio=0.3, mode='extend')
    assert len(mix) == 57
    assert [mix[i]['path'] for i in range(40)] == [f'real{i}' for i in range(40)]
    names = [mix[i]['path'].rpartition('/')[2] for i in range(40, 57)]
    assert names == [f'{i % 10:06d}.png' for i in range(17)]
    assert [mix.get_data_info(i)['img_path'] for i in (40, 56)] == [
        mix[i]['path'] for i in (40, 56)
    ]
    assert mix.get_data_info(41)['prompt_id'] == 'p1@0'


@pytest.mark.parametrize('ratio', [0, 0.3, 0.9])
def test_share_of_synthetic_samples(pool, ratio):
    mix = SyntheticMixDataset(real(), pool, ratio=ratio)
    mix.seed = 0
    drawn = []
    for mix.epoch in range(50):
        drawn += mix.__getitems__(range(40))
    share = np.mean([item['made'] for item in drawn])
    assert share == pytest.approx(ratio, abs=4 * (ratio * (1 - ratio) / 2000) ** 0.5)
    assert len({item['path'] for item in drawn if item['made']}) == (10 if ratio else 0)
    assert not mix.get_data_info(0)['img_path'].endswith('.png')


# In a DataLoader


def loader_of(mix, num_workers=2, **kwargs):
    config = dict(
        batch_size=8,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=mix,
    )
    return Runner.build_dataloader({**config, **kwargs}, seed=0)


def epoch_of(loader) -> list[tuple]:
    rows = []
    for batch in loader:
        rows += zip(batch['path'], batch['made'], zip(*batch['draws'], strict=True), strict=True)
    return rows


@pytest.mark.parametrize('mode', ['replace', 'extend'])
def test_new_images_are_seen_in_the_next_epoch(tmp_path, mode):
    pool = tmp_path / 'pool'
    loader = loader_of(SyntheticMixDataset(real(), str(pool), ratio=0.5, mode=mode))
    mix, batches = loader.dataset, len(loader)
    mix.seed = 0
    seen = []
    for mix.epoch, count in enumerate((0, 4, 12)):
        fill_pool(pool, count)
        mix.refresh()
        restart_workers(loader)
        rows = epoch_of(loader)
        made = {path.rpartition('/')[2] for path, synthetic, _ in rows if synthetic}
        assert (count == 0) == (not made) and len(rows) == {'replace': 40, 'extend': 80}[mode]
        assert all(int(name[:6]) < count for name in made)
        seen.append(made)
        assert len(loader) == batches
    assert seen[2] - seen[1]
    # What a restart is for: persistent workers go on with their copy of the old pool.
    fill_pool(pool, 100)
    mix.refresh()
    names = {path.rpartition('/')[2] for path, synthetic, _ in epoch_of(loader) if synthetic}
    assert all(int(name[:6]) < 12 for name in names)


def test_a_batch_depends_on_seed_epoch_and_indices_alone(pool):
    def epochs(num_workers, seed=0, first=0):
        loader = loader_of(SyntheticMixDataset(real(), pool), num_workers)
        loader.dataset.seed = seed
        rows = []
        for loader.dataset.epoch in range(first, 2):
            restart_workers(loader)
            rows.append(epoch_of(loader))
        return rows

    torch.manual_seed(7)
    expected = epochs(0)
    torch.manual_seed(8)
    assert epochs(1) == epochs(2) == expected
    assert epochs(0, first=1) == expected[1:]  # a run that is resumed
    assert epochs(0, seed=1) != expected
    draws = [{draw for _, _, draw in epoch} for epoch in expected]
    assert len(draws[0] | draws[1]) == 80  # no draw twice, within an epoch or between epochs
    made = [[row[1] for row in epoch] for epoch in expected]
    assert made[0] != made[1]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_mix_inside_a_wrapper_draws_anew_in_each_epoch(pool, workers):
    """Also workers that start anew, which MMEngine seeds without the epoch."""
    config = dict(type=SyntheticMixDataset, dataset=real(), pool=pool)
    loader = loader_of(RepeatDataset(config, times=2), workers)
    (mix,) = mixes_in(loader.dataset)
    loader.dataset.__getitems__ = partial(batch_of, mix, loader.dataset)
    mix.seed, rows = 0, []
    for mix.epoch in range(2):
        restart_workers(loader)
        rows.append(epoch_of(loader))
    assert all(len(epoch) == 80 for epoch in rows)
    assert len({draw for epoch in rows for _, _, draw in epoch}) == 160
    assert len(mixes_in(ConcatDataset([config, real()]))) == 1


def test_each_pass_of_an_endless_loop_has_draws_of_its_own(pool):
    mix = SyntheticMixDataset(real(), pool)
    mix.seed = 0
    draws = {mix.__getitems__([7 + 40 * number])[0]['draws'] for number in range(50)}
    made = [mix.__getitems__([7 + 40 * number])[0]['made'] for number in range(50)]
    assert len(draws) == 50 and 10 < sum(made) < 40


def test_classes_for_a_balanced_wrapper(pool):
    config = dict(type=SyntheticMixDataset, dataset=real(), pool=pool)
    balanced = ClassBalancedDataset(config, oversample_thr=0.9)
    assert len(balanced) > 40 and balanced[0]['path']


def test_global_generators_are_untouched(pool):
    mix = SyntheticMixDataset(real(), pool)
    mix.seed = 3

    def states():
        name, keys, *rest = np.random.get_state()
        return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()

    before = states()
    first = mix.__getitems__([1, 2, 3])
    assert states() == before and mix.__getitems__([1, 2, 3]) == first
    mix.dataset.pipeline = None
    with pytest.raises(TypeError):
        mix.__getitems__([1, 2, 3])
    assert states() == before
    mix = SyntheticMixDataset(real(), pool)  # without a seed: the worker's own generators
    mix.__getitems__([1, 2, 3])
    assert states() != before


# In the place of their own sources


def paired_pool(folder, sources, order=range(40)):
    """Images of the classes of their sources, which are these of the real samples."""
    pool = SamplePool(folder)
    for i, source in enumerate(sources):
        about = dict(ABOUT, source_index=source, seed=i, label=order[source] % 2)
        pool.append(picture(i), **about)
    return str(folder)


@pytest.mark.parametrize('repeated', [False, True])
def test_paired(tmp_path, repeated):
    """An image comes only where its own source is, also if a wrapper shows that twice."""
    sources = [3, 3, 7, 0, 39]
    config = real()
    if repeated:  # the sources of a wrapper are its distinct samples in its own order
        config = dict(type=ConcatDataset, datasets=[real(indices=[9, 8]), real()])
        config = dict(type=RepeatDataset, times=2, dataset=config)
    order = [9, 8, *range(8), *range(10, 40)] if repeated else list(range(40))
    pool = paired_pool(tmp_path, sources, order)
    mix = SyntheticMixDataset(config, pool, ratio=1, paired=True)
    mix.seed, drawn = 0, {}
    for mix.epoch in range(30):
        for i, item in enumerate(mix.__getitems__(range(len(mix)))):
            drawn.setdefault(i, set()).add(item['path'].rpartition('/')[2])
    of_source = {}
    for number, source in enumerate(sources):
        of_source.setdefault(f'real{order[source]}', set()).add(f'{number:06d}.png')
    assert len(mix) == (84 if repeated else 40) and len(of_source) == 4
    for i in range(len(mix)):
        path = mix.get_data_info(i)['img_path']
        assert drawn[i] == of_source.get(path, {path}), i
    mix.ratio = 0.25
    made = []
    for mix.epoch in range(100):
        made += [item['made'] for item in mix.__getitems__([i for i in drawn if len(drawn[i]) > 1])]
    assert np.mean(made) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(made)) ** 0.5)
    assert len(made) == 100 * sum(len(names) > 1 for names in drawn.values())
    paired_pool(tmp_path, [5], order)  # goes on: real5 has an image now
    mix.refresh()
    mix.ratio = 1.0
    place = [mix.get_data_info(i)['img_path'] for i in range(len(mix))].index(f'real{order[5]}')
    assert mix.__getitems__([place])[0]['path'].endswith('/000005.png')


@pytest.mark.parametrize(
    'sources, changes, words',
    [
        ([3, 40], {}, r'000001.png was drawn around sample 40 of class 0, which is not there in'),
        ([3, 4], dict(label=1), r'around sample 4 of class 1, which is of class 0 in'),
    ],
)
def test_images_of_other_sources_take_nobodys_place(sources, changes, words, tmp_path):
    pool = SamplePool(tmp_path)
    for i, source in enumerate(sources):
        about = dict(ABOUT, source_index=source, seed=i, label=source % 2)
        pool.append(picture(i), **{**about, **(changes if i else {})})
    mix = SyntheticMixDataset(real(), str(tmp_path), ratio=1)
    with pytest.raises(ValueError, match=words):
        mix.pair()


def test_processes_that_get_the_same_samples_draw_otherwise(pool):
    mix = SyntheticMixDataset(real(), pool)
    mix.seed, batches = 0, []
    for mix.rank in (None, 0, 1, 0):
        batches.append(mix.__getitems__([1, 2, 3]))
    assert batches[1] == batches[3] != batches[2] != batches[0] != batches[1]
