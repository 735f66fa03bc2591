# SPDX-License-Identifier: Apache-2.0
"""Class folders with masks beside the images or in a folder of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mmgap.datasets import MaskedFolders, share_classes
from mmgap.images import SUFFIXES
from mmgap.loop.guards import check_classes
from mmgap.sources import SourceSet


@pytest.fixture
def root(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ('cat', 'ape'):
        for i in range(3):
            folder = tmp_path / 'data' / name / ('deep' if i else '.')
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.JPG', format='png')
            mask = np.zeros((20, 24), np.uint8)
            mask[5:12, 5:12] = 255
            Image.fromarray(mask).save(folder / f'{i}_mask.png')
    (tmp_path / 'data' / 'cat' / 'notes.txt').write_text('no image')
    return tmp_path / 'data'


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """What is said in warnings."""
    words = []
    logger = SimpleNamespace(get_current_instance=lambda: SimpleNamespace(warning=words.append))
    monkeypatch.setattr('mmgap.datasets.masked_folders.MMLogger', logger)
    return words


def test_masks_beside_the_images(root):
    dataset = MaskedFolders(str(root))
    assert dataset.metainfo['classes'] == ('ape', 'cat') and len(dataset) == 6
    names = [Path(dataset.get_data_info(i)['img_path']).relative_to(root) for i in range(6)]
    assert [str(n) for n in names[:3]] == ['ape/0.JPG', 'ape/deep/1.JPG', 'ape/deep/2.JPG']
    assert [dataset.get_cat_ids(i) for i in range(6)] == [[0]] * 3 + [[1]] * 3
    sources = SourceSet(dataset, (20, 20))
    assert sources.classes == ('ape', 'cat') and sources.load([4]).masks.sum() == 49


def test_masks_in_a_folder_of_their_own(root):
    for mask in list(root.rglob('*_mask.png')):
        moved = root / 'masks' / mask.relative_to(root).parent / mask.name.replace('_mask', '')
        moved.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(mask, moved)
    dataset = MaskedFolders(str(root), mask_dir='masks', metainfo=dict(classes=('cat', 'ape')))
    info = dataset.get_data_info(0)
    assert info['mask_path'] == str(root / 'masks' / 'cat' / '0.png') and info['gt_label'] == 0
    assert MaskedFolders(str(root), mask_dir='masks').metainfo['classes'] == ('ape', 'cat')
    with pytest.raises(ValueError, match=r"\['masks'\].* none .* a folder of masks in"):
        MaskedFolders(str(root), metainfo=dict(classes=('cat', 'ape')))
    with pytest.raises(FileNotFoundError, match='6 of 6 masks of .* are missing, .*0.png'):
        MaskedFolders(str(root), mask_dir=str(root / 'masks' / 'cat'), classes=('cat', 'ape'))
    (root / '.ipynb_checkpoints').mkdir()
    for given in ('masks', 'masks/', './masks', str(root / 'masks')):
        plain = MaskedFolders(str(root), with_masks=False, mask_dir=given)
        assert plain.metainfo['classes'] == ('ape', 'cat') and len(plain) == 6
        assert 'mask_path' not in plain.get_data_info(0)


def test_classes_are_those_of_the_training_data(root, warned):
    """A split that lacks one would number the others anew."""
    train = shutil.copytree(root, root.with_name('train'))
    shutil.copytree(train / 'cat', train / 'bee')
    kind = dict(type='mmgap.MaskedFolders', with_masks=False)
    repeated = dict(type='RepeatDataset', dataset=dict(kind, data_root=str(train)), times=2)
    given = dict(dataset=dict(kind, data_root=str(root), classes=['ape', 'cat']))
    config = dict(
        train_dataloader=dict(dataset=repeated),
        val_dataloader=given,
        test_dataloader=dict(dataset=dict(kind, data_root=str(root))),
    )
    share_classes(config)
    test = config['test_dataloader']['dataset']
    assert test['classes'] == ['ape', 'bee', 'cat']
    assert given['dataset']['classes'] == ['ape', 'cat']
    dataset = DATASETS.build(test)
    labels = {Path(i['img_path']).relative_to(root).parts[0]: i['gt_label'] for i in infos(dataset)}
    assert labels == dict(ape=0, cat=2) and 'has no images of class bee' in warned[-1]
    sources = SimpleNamespace(label_type='classes', classes=('ape', 'bee', 'cat'))
    check_classes(sources, [dataset])
    with pytest.raises(ValueError, match=r"\['ape', 'cat'\], the training data \['ape', 'bee"):
        check_classes(sources, [DATASETS.build(given['dataset'])])


def infos(dataset) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def test_no_file_is_left_out_without_a_word(root, warned):
    for i, suffix in enumerate(SUFFIXES):
        name = root / 'cat' / f'new{i}{suffix}'
        Image.new('1' if suffix == '.pbm' else 'RGB', (24, 20)).save(name)
        shutil.copy(root / 'cat' / '0_mask.png', name.with_name(f'new{i}_mask.png'))
    (root / 'ape' / '9.heic').write_text('')
    dataset = MaskedFolders(str(root))
    assert len(dataset) == 6 + len(SUFFIXES) and len(dataset.left_out) == 2
    assert '2 file(s) are left out, they end with none of' in warned[0] and '9.heic' in warned[0]
    assert SourceSet(dataset, (20, 20)).load(range(len(dataset))).masks.any(dim=-1).any()
    shutil.copy(root / 'cat' / 'new0.jpg', root / 'cat' / 'new0.png')
    with pytest.raises(ValueError, match='new0.jpg and .*new0.png would have the same mask'):
        MaskedFolders(str(root))


def test_what_is_missing_is_named(root):
    with pytest.raises(ValueError, match=r"folders \['ape'\], which are none of the classes"):
        MaskedFolders(str(root), metainfo=dict(classes=('dog', 'cat')))
    (root / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty has no images'):
        MaskedFolders(str(root))
    with pytest.raises(FileNotFoundError, match='nowhere.* does not exist'):
        MaskedFolders(str(root / 'nowhere'))
    for prefix in ('train', dict(img_path='train')):
        with pytest.raises(ValueError, match='no data_prefix, got .*train.*in data_root'):
            MaskedFolders(str(root), data_prefix=prefix)


def test_a_link_to_nothing_is_named(root):

    (root / 'cat' / '.#lock').symlink_to('nobody@nowhere')  # as editors leave them
    path = root / 'cat' / 'gone.jpg'
    path.symlink_to(root / 'nothing.jpg')
    with pytest.raises(FileNotFoundError, match=r'gone\.jpg is a link to .*nothing\.jpg, which'):
        DATASETS.build(dict(type='mmgap.MaskedFolders', data_root=str(root)))
