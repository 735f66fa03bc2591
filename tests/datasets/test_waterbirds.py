# SPDX-License-Identifier: Apache-2.0
import csv
import shutil
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader

from mmgap.datasets.waterbirds import Waterbirds
from tests.support.miniature import CLASSES, PLACES, draw_waterbirds, group_sizes

PER_GROUP = 3
SPLIT_NAMES = ('train', 'val', 'test')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_waterbirds(tmp_path_factory.mktemp('waterbirds'), per_group=PER_GROUP)


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(drawn, tmp_path / 'waterbirds')


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / 'metadata.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def write_rows(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / 'metadata.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize('number, split', list(enumerate(SPLIT_NAMES)))
def test_infos_are_those_of_the_csv(drawn: Path, number: int, split: str) -> None:
    dataset = Waterbirds(str(drawn), split, with_masks=True)
    expected = [row for row in rows_of(drawn) if row['split'] == str(number)]
    assert len(dataset) == len(expected) == sum(group_sizes(PER_GROUP)[number])
    for index, row in enumerate(expected):
        path = drawn / row['img_filename']
        assert dataset.get_data_info(index) == dict(
            img_path=str(path),
            mask_path=str(path.parent / f'{path.stem}_mask.png'),
            gt_label=int(row['y']),
            group=2 * int(row['y']) + int(row['place']),
            sample_idx=index,
        )
        assert dataset.get_cat_ids(index) == [int(row['y'])]


def test_correlated_and_few(drawn: Path) -> None:
    whole = Waterbirds(str(drawn), 'train')
    correlated = Waterbirds(str(drawn), 'train', correlated=True)
    groups = [correlated.get_data_info(i)['group'] for i in range(len(correlated))]
    assert set(groups) == {0, 3} and len(groups) == 4 * PER_GROUP < len(whole)
    assert correlated.metainfo['train_group_counts'] == whole.metainfo['train_group_counts']
    few = Waterbirds(str(drawn), 'train', correlated=True, num_samples=8)
    paths = [few.get_data_info(i)['img_path'] for i in range(len(few))]
    everything = [correlated.get_data_info(i)['img_path'] for i in range(len(correlated))]
    assert len(set(paths)) == 8 and paths == [path for path in everything if path in paths]
    assert paths != everything[:8]
    with pytest.raises(ValueError, match='num_samples=99 must be from 1 to the 12 samples'):
        Waterbirds(str(drawn), 'train', correlated=True, num_samples=99)


@pytest.mark.parametrize('split', SPLIT_NAMES)
def test_metainfo_counts_the_training_groups_from_every_split(drawn: Path, split: str) -> None:
    meta = Waterbirds(str(drawn), split).metainfo
    assert meta['classes'] == CLASSES
    assert meta['groups'] == tuple(f'{bird}-{place}' for bird in CLASSES for place in PLACES)
    assert meta['train_group_counts'] == group_sizes(PER_GROUP)[0]


def test_masks_are_8_bit_and_cover_the_bird_alone(drawn: Path) -> None:
    dataset = Waterbirds(str(drawn), 'train')
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        image = mmcv.imread(info['img_path'])
        mask = mmcv.imread(info['mask_path'], flag='unchanged')
        assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
        assert set(np.unique(mask)) == {0, 255}
        assert 0.03 < (mask == 255).mean() < 0.4
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not border.any()


def test_drawing_follows_from_the_seed(drawn: Path, tmp_path: Path) -> None:
    again = draw_waterbirds(tmp_path / 'again', per_group=PER_GROUP)
    other = draw_waterbirds(tmp_path / 'other', per_group=PER_GROUP, seed=1)
    files = sorted(path.relative_to(drawn) for path in drawn.rglob('*') if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob('*') if path.is_file())
    for file in files:
        assert (drawn / file).read_bytes() == (again / file).read_bytes()
    assert (drawn / 'metadata.csv').read_bytes() != (other / 'metadata.csv').read_bytes()


def test_only_train_carries_masks_by_default(drawn: Path) -> None:
    carries = {
        split: 'mask_path' in Waterbirds(str(drawn), split).get_data_info(0)
        for split in SPLIT_NAMES
    }
    assert carries == dict(train=True, val=False, test=False)
    assert 'mask_path' not in Waterbirds(str(drawn), 'train', with_masks=False).get_data_info(0)


@pytest.mark.parametrize('absolute', [True, False])
def test_mask_dir_has_the_layout_of_the_cub_segmentations(root: Path, absolute: bool) -> None:
    masks = root.parent / 'segmentations'
    for mask in list(root.rglob('*_mask.png')):
        target = masks / mask.parent.name / f'{mask.stem.removesuffix("_mask")}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(mask, target)
    mask_dir = str(masks) if absolute else '../segmentations'
    dataset = Waterbirds(str(root), 'val', mask_dir=mask_dir)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        image, mask = Path(info['img_path']), Path(info['mask_path']).resolve()
        assert mask == masks / image.parent.name / f'{image.stem}.png'


def test_stock_pipeline_and_loader(drawn: Path) -> None:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=32),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
    ]
    config = dict(type='mmgap.Waterbirds', data_root=str(drawn), split='train', pipeline=pipeline)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(config)
    loader = DataLoader(dataset, batch_size=4, collate_fn=list)
    samples = [item for batch in loader for item in batch]
    assert len(samples) == len(dataset)
    for index, sample in enumerate(samples):
        info = dataset.get_data_info(index)
        assert sample['inputs'].shape == (3, 32, 32)
        assert sample['data_samples'].gt_label.tolist() == [info['gt_label']]
        assert sample['data_samples'].group == info['group']


def test_works_inside_class_balanced_dataset(drawn: Path) -> None:
    dataset = ClassBalancedDataset(Waterbirds(str(drawn), 'train'), oversample_thr=0.9)
    assert len(dataset) >= sum(group_sizes(PER_GROUP)[0])


def test_lazy_init_and_indices(drawn: Path) -> None:
    dataset = Waterbirds(str(drawn), 'test', indices=5, lazy_init=True)
    assert len(dataset) == 5
    assert dataset.metainfo['train_group_counts'] == group_sizes(PER_GROUP)[0]


def test_missing_metadata(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='metadata.csv does not exist: data_root must be'):
        Waterbirds(str(tmp_path), 'train')


@pytest.mark.parametrize('column', ['img_filename', 'y', 'split', 'place'])
def test_missing_column(root: Path, column: str) -> None:
    write_rows(root, [{k: v for k, v in row.items() if k != column} for row in rows_of(root)])
    with pytest.raises(ValueError, match=rf"missing column\(s\) \['{column}'\]; found \['img_id'"):
        Waterbirds(str(root), 'train')


@pytest.mark.parametrize(
    'column, value', [('y', '2'), ('y', 'landbird'), ('place', '-1'), ('split', '3'), ('y', '')]
)
def test_value_out_of_range_names_the_line(root: Path, column: str, value: str) -> None:
    rows = rows_of(root)
    rows[3][column] = value
    write_rows(root, rows)
    with pytest.raises(ValueError, match=f"line 5: {column}='{value}' must be one of"):
        Waterbirds(str(root), 'test')


def test_integers_written_as_floats_are_read(root: Path) -> None:
    write_rows(root, [{**row, 'y': f'{row["y"]}.0'} for row in rows_of(root)])
    assert Waterbirds(str(root), 'val').metainfo['train_group_counts'] == group_sizes(PER_GROUP)[0]


def test_unknown_split(drawn: Path) -> None:
    with pytest.raises(ValueError, match="split='validation' must be one of"):
        Waterbirds(str(drawn), 'validation')


def test_empty_split(root: Path) -> None:
    write_rows(root, [row for row in rows_of(root) if row['split'] != '1'])
    with pytest.raises(ValueError, match='no sample has split=1'):
        Waterbirds(str(root), 'val')


def test_missing_masks_are_counted_and_the_first_is_named(root: Path) -> None:
    infos = Waterbirds(str(root), 'train')
    paths = [Path(infos.get_data_info(i)['mask_path']) for i in (1, 4)]
    for path in paths:
        path.unlink()
    with pytest.raises(FileNotFoundError, match='2 of 14 masks') as error:
        Waterbirds(str(root), 'train')
    assert str(paths[0]) in str(error.value) and 'with_masks=False' in str(error.value)
    assert len(Waterbirds(str(root), 'train', with_masks=False)) == len(infos)


def test_mask_dir_without_masks_is_refused(drawn: Path) -> None:
    with pytest.raises(ValueError, match="mask_dir='masks' has no use with with_masks=False"):
        Waterbirds(str(drawn), 'train', with_masks=False, mask_dir='masks')
