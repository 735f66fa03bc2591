# SPDX-License-Identifier: Apache-2.0
"""ToyBirds and its file backend, read the way a stock pipeline reads them."""

import collections
import pickle

import cv2
import mmengine.fileio as fileio
import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from mmgap.registry import DATASETS
from mmgap.toyworld import ToyBirds, render
from mmgap.toyworld.birds import SUBTYPES, draw_bird
from mmgap.toyworld.renderer import WORLD_VERSION
from mmgap.toyworld.splits import SIZES, record


def decode(path: str, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(fileio.get(path), np.uint8), flag)


def test_registered_under_its_scope():
    assert isinstance(DATASETS.build({'type': 'mmgap.ToyBirds', 'split': 'val'}), ToyBirds)


@pytest.mark.parametrize('split', SIZES)
def test_sizes_and_groups(split):
    dataset = ToyBirds(split)
    assert len(dataset) == SIZES[split]
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [i['sample_idx'] for i in infos] == list(range(len(dataset)))
    if split in ('guidance', 'guidance_shift'):
        assert all('gt_label' not in i and 'group' not in i for i in infos)
        return
    groups = collections.Counter(i['group'] for i in infos)
    share = len(dataset) // (2 if split in ('train', 'val_id', 'test_id_2', 'test_id_3') else 4)
    expected = (0, 3) if split in ('train', 'val_id', 'test_id_2', 'test_id_3') else (0, 1, 2, 3)
    assert groups == {g: share for g in expected}
    for info in infos:
        label, place = divmod(info['group'], 2)
        assert info['gt_label'] == label
        named = record(split, info['sample_idx']).scene.place
        assert named in (('forest', 'bamboo'), ('ocean', 'lake'))[place]


def test_metainfo():
    meta = ToyBirds('test').metainfo
    assert meta['classes'] == ('landbird', 'waterbird')
    assert meta['groups'] == (
        'landbird-land',
        'landbird-water',
        'waterbird-land',
        'waterbird-water',
    )
    assert meta['train_group_counts'] == (600, 0, 0, 600)
    assert ToyBirds('train', size=10).metainfo['train_group_counts'] == (5, 0, 0, 5)


def test_conditions():
    for split in ('train', 'val', 'test', 'test_final_2', 'test_final_3', 'test_id_2', 'guidance'):
        scenes = [record(split, i).scene for i in range(2000)]
        clear_days = np.mean([(s.time, s.weather) == ('day', 'clear') for s in scenes])
        assert abs(clear_days - 0.85) < 0.03
    for split in ('test_shift', 'test_shift_2', 'test_shift_3', 'guidance_shift'):
        assert {(s.time, s.weather) for s in (record(split, i).scene for i in range(50))} == {
            ('night', 'fog')
        }


def test_no_scene_is_in_two_splits():
    seeds = [record(split, i).scene.seed for split in SIZES for i in range(SIZES[split])]
    assert len(set(seeds)) == sum(SIZES.values())


def test_backend_draws_what_the_renderer_draws():
    info = ToyBirds('test').get_data_info(17)
    rendering = render(record('test', 17).scene)
    assert info['img_path'] == 'toybirds://test/000017.png'
    np.testing.assert_array_equal(decode(info['img_path'])[..., ::-1], rendering.image)
    mask = decode(info['mask_path'], cv2.IMREAD_UNCHANGED)
    assert mask.ndim == 2 and set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask, rendering.mask)


def test_size_changes_no_record():
    small, large = ToyBirds('train', size=3), ToyBirds('train', size=1500)
    assert [small.get_data_info(i) for i in range(3)] == [large.get_data_info(i) for i in range(3)]


def test_stock_pipeline_in_workers():
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import DATASETS as PRETRAIN_DATASETS
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    dataset = PRETRAIN_DATASETS.build(
        {
            'type': 'mmgap.ToyBirds',
            'split': 'val',
            'size': 8,
            'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}],
        }
    )
    dataset = pickle.loads(pickle.dumps(dataset))
    batch = next(iter(DataLoader(dataset, 8, num_workers=1, collate_fn=pseudo_collate)))
    assert tuple(batch['inputs'][3].shape) == (3, 64, 64)
    np.testing.assert_array_equal(
        batch['inputs'][3].permute(1, 2, 0).numpy()[..., ::-1], render(record('val', 3).scene).image
    )
    assert int(batch['data_samples'][3].gt_label) == 1


@pytest.mark.parametrize('arguments', [{'split': 'validation'}, {'split': 'val', 'size': 0}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match='split=|size='):
        ToyBirds(**arguments)


@pytest.mark.parametrize(
    'path', ['toybirds://nowhere/000001.png', 'toybirds://val/one.png', 'toybirds://val/000001.jpg']
)
def test_bad_paths(path):
    assert not fileio.exists(path)
    with pytest.raises(FileNotFoundError, match='SPLIT'):
        fileio.get(path)


def test_species_are_labels_of_the_same_pictures():
    plain, species = ToyBirds('test', size=60), ToyBirds('test', size=60, species=True)
    classes = species.metainfo['classes']
    assert classes == SUBTYPES['landbird'] + SUBTYPES['waterbird']
    for i in range(60):
        by_kind, by_species = plain.get_data_info(i), species.get_data_info(i)
        label = by_species['gt_label']
        assert by_species['img_path'] == by_kind['img_path'] and label // 3 == by_kind['gt_label']
        assert by_species['group'] == 2 * label + by_kind['group'] % 2
        scene = record('test', i).scene
        rng = np.random.default_rng([WORLD_VERSION, scene.seed, 1])
        rng.integers(3)  # which draws the species
        assert np.array_equal(draw_bird(rng, classes[label]).mask, render(scene).mask > 0)
    counts = ToyBirds('train', species=True).metainfo['train_group_counts']
    assert sum(counts) == 1200 and not any(counts[1:6:2]) and not any(counts[6::2])
