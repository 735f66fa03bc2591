# SPDX-License-Identifier: Apache-2.0
"""iWildCam from WILDS' files through the converter to data infos."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgap.datasets import IWildCam
from mmgap.datasets.iwildcam import CLASSES, SPLITS
from mmgap.sources import SourceSet
from tests.support.miniature import convert_iwildcam, draw_iwildcam


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    return draw_iwildcam(tmp_path_factory.mktemp('wilds') / 'iwildcam')


@pytest.fixture(scope='module')
def root(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('iwildcam')
    said = convert_iwildcam(source, out).check()
    assert '420 images, 340 with masks' in said  # 5 splits, 6 sequences, 2 x 7 species
    return out


def test_strips_are_cut_and_masks_are_boxes_of_animals(root, source):
    with (root / 'metadata.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert {row['y'] for row in rows} == set(map(str, range(7)))
    animal = next(row for row in rows if row['y'] == '1')
    image = np.array(Image.open(root / 'images' / animal['filename']))
    assert image.shape == (40 - 2 - 3, 60, 3) and image[0].mean() < 180 > image[-1].mean()
    mask = np.array(Image.open(root / 'masks' / animal['filename'].replace('jpg', 'png')))
    expected = np.zeros((35, 60), np.uint8)
    expected[10 - 2 : 30 - 2, 15:45] = 255
    np.testing.assert_array_equal(mask, expected)
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*.jpg')}
    (root / 'images' / animal['filename']).unlink()
    convert_iwildcam(source, root).check()
    after = {path: path.stat().st_mtime_ns for path in root.rglob('*.jpg')}
    changed = [path.name for path in before if after[path] != before[path]]
    assert changed == [animal['filename']]  # what is there is not made again


def test_splits_share_no_image_and_guidance_no_sequence(root):
    parts = {split: IWildCam(str(root), split) for split in SPLITS}
    paths = [
        {part.get_data_info(i)['img_path'] for i in range(len(part))} for part in parts.values()
    ]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 420
    guidance = parts['guidance']
    assert set(guidance.get_data_info(0)) == {'img_path', 'sample_idx'}
    shown = {Path(guidance.get_data_info(i)['img_path']).name for i in range(len(guidance))}
    with (root / 'metadata.csv').open() as file:
        rows = list(csv.DictReader(file))
    held_out = {row['sequence'] for row in rows if row['filename'] in shown}
    test = parts['test']
    tested = {test.get_data_info(i)['sequence'] for i in range(len(test))}
    assert held_out and tested and not held_out & tested
    assert len(held_out | tested) == 6
    whole = IWildCam(str(root), 'test', guidance_share=0.0)
    assert len(whole) == len(test) + len(guidance) == 84


def test_places_hours_and_masks(root):
    night = IWildCam(str(root), 'train', time='night')
    assert {night.get_data_info(i)['hour'] for i in range(len(night))} == {3}
    assert len(night) == len(IWildCam(str(root), 'train', time='day')) == 42
    assert len(IWildCam(str(root), 'train', hours=[3])) == len(night)
    assert len(IWildCam(str(root), 'val', locations=[101])) == 84
    with pytest.raises(ValueError, match=r"no image of split 'val' is left at locations \['7'\]"):
        IWildCam(str(root), 'val', locations=[7])
    masked = IWildCam(str(root), 'train', with_masks=True)
    assert len(masked) == 80  # background has no masks, four animals have none that can be used
    infos = [masked.get_data_info(i) for i in range(80)]
    assert all(('mask_path' in info) == (info['gt_label'] != 0) for info in infos)
    missing = Path(infos[-1]['mask_path'])
    os.rename(missing, missing.with_suffix('.not'))
    assert len(IWildCam(str(root), 'train', with_masks=True)) == 79
    os.rename(missing.with_suffix('.not'), missing)
    condition = SourceSet(masked, (32, 32)).load(range(80))
    kept = condition.masks.float().mean(dim=(1, 2, 3))
    assert (kept[condition.labels == 0] == 0).all()
    assert ((kept > 0.05) & (kept < 0.95))[condition.labels != 0].all()
    assert masked.metainfo['classes'] == CLASSES


def test_files_of_boxes_and_broken_images(root, source, tmp_path):
    """Boxes of other images are refused and leave nothing behind; those of 2021 have an id."""
    src, out = tmp_path / 'src', tmp_path / 'out'
    (src / 'train').mkdir(parents=True)
    shutil.copy(source / 'categories.csv', src)
    with (source / 'metadata.csv').open() as file:
        head, *rows = list(csv.reader(file))
    rows = rows[::40]
    with (src / 'metadata.csv').open('w', newline='') as file:
        csv.writer(file).writerows([head, *rows])
    names = [row[head.index('filename')] for row in rows]
    for name in names:
        shutil.copy(source / 'train' / name, src / 'train')
    images = json.loads((source / 'detections.json').read_text())['images']
    found = {image['file'].split('/')[-1]: image['detections'] for image in images}
    files = dict(
        others=[dict(file=f'animals/{i}.jpg', detections=found[n]) for i, n in enumerate(names)],
        by_id=[dict(id=Path(n).stem, detections=found[n]) for n in names if n in found],
    )
    for name, images in files.items():
        (src / f'{name}.json').write_text(json.dumps(dict(images=images)))
    done = convert_iwildcam(src, out, '--detections', src / 'others.json')
    assert done.code and 'has none of the' in done.output and "'animals/0.jpg'" in done.output
    assert not out.exists()

    options = (src, out, '--detections', src / 'by_id.json')
    broken, gone = (src / 'train' / name for name in names[:2])
    whole = {path: path.read_bytes() for path in (broken, gone)}
    broken.write_bytes(whole[broken][: len(whole[broken]) // 2])
    gone.unlink()
    done = convert_iwildcam(*options)
    said = done.output
    assert done.code and f'2 of {len(names)} images cannot be converted' in said
    assert f'{broken} cannot be read' in said and str(gone) in said and '--skip-faulty' in said
    assert not (out / 'metadata.csv').exists()
    said = convert_iwildcam(*options, '--skip-faulty').check()
    assert f'{len(names) - 2} images, ' in said and '2 are left out' in said
    with (out / 'metadata.csv').open() as file:
        assert [row['filename'] for row in csv.DictReader(file)] == names[2:]
    for path, data in whole.items():
        path.write_bytes(data)
    assert f'{len(names)} images, ' in convert_iwildcam(*options).check()
    made = {path.name: path.read_bytes() for path in (out / 'masks').iterdir()}
    masks = [root / 'masks' / name.replace('jpg', 'png') for name in names]
    assert made == {path.name: path.read_bytes() for path in masks if path.exists()} != {}


def test_bad_input(root, source, tmp_path):
    for wrong, words in (
        (dict(split='night'), "split='night' must be one of"),
        (dict(split='test', time='noon'), "time='noon' must be one of"),
        (dict(split='test', hours=[24]), r'hours=\[24\] must be from 0 to 23'),
        (dict(split='test', hours=[3], time='day'), "not beside time='day'"),
        (dict(split='test', guidance_share=1.0), r'guidance_share must be in \[0, 1\), got 1.0'),
    ):
        with pytest.raises(ValueError, match=words):
            IWildCam(str(root), **wrong)
    with pytest.raises(FileNotFoundError, match='tools/dataset_converters/iwildcam.py wrote'):
        IWildCam(str(tmp_path), 'test')
    (tmp_path / 'metadata.csv').write_text('filename,label\n')
    with pytest.raises(ValueError, match=r"missing column\(s\) \['y', 'split'"):
        IWildCam(str(tmp_path), 'test')
    done = convert_iwildcam(tmp_path / 'nowhere', tmp_path / 'out')
    assert done.code and 'categories.csv does not exist' in done.output
    done = convert_iwildcam(source, root, '--top', '0.1')
    assert done.code and 'take another --out' in done.output
    done = convert_iwildcam(source, tmp_path / 'out', '--bottom', '0.6')
    assert done.code and '--bottom must be in [0, 0.5), got 0.6' in done.output
