# SPDX-License-Identifier: Apache-2.0
"""Data that are not there, or say something else than they should."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.soak.stage import Stage, case


@case('data_root is a file', 'train')
def data_root_is_a_file(stage: Stage) -> None:
    root = stage.folder / 'birds'
    root.write_text('birds')
    stage.refuses('train', stage.config(root), says=['data_root', root])


@case('data_root does not exist', 'check')
def data_root_missing(stage: Stage) -> None:
    stage.checks_wrong(stage.config(stage.folder / 'birds'), says=['data_root', 'metadata.csv'])


@case('metadata.csv with a byte order mark', 'train')
def metadata_bom(stage: Stage) -> None:
    root = stage.birds()
    rewrite(root, lambda text: '\ufeff' + text)
    stage.accepts('train', stage.config(root))
    assert stage.summary()['images'] == 2


@case('metadata.csv without the column place', 'check')
def metadata_column(stage: Stage) -> None:
    root = stage.birds()
    rewrite(root, lambda text: text.replace('place', 'ground', 1))
    stage.checks_wrong(stage.config(root), says=['metadata.csv', "'place'", 'ground'])


@case('metadata.csv with the split code 7', 'train')
def metadata_split(stage: Stage) -> None:
    root = stage.birds()
    rows = list(csv.reader((root / 'metadata.csv').open()))
    rows[3][3] = '7'
    rewrite(root, lambda text: '\n'.join(map(','.join, rows)))
    says = ['metadata.csv', 'line 4', "split='7'", '[0, 1, 2]']
    stage.refuses('train', stage.config(root), says=says)


@case('metadata.csv is empty', 'train')
def metadata_empty(stage: Stage) -> None:
    root = stage.birds()
    (root / 'metadata.csv').write_text('')
    stage.refuses('train', stage.config(root), says=['metadata.csv', 'img_filename'])


@case('metadata.csv in Latin-1', 'train')
def metadata_latin(stage: Stage) -> None:
    root = stage.birds()
    text = (root / 'metadata.csv').read_text().replace('land/', 'länd/')
    (root / 'metadata.csv').write_bytes(text.encode('latin-1'))
    stage.refuses('train', stage.config(root), says=['metadata.csv', 'UTF-8'])


@case('metadata.csv names a picture that is missing', 'check')
def picture_missing(stage: Stage) -> None:
    root = stage.birds()
    picture = train_pictures(root)[0]
    picture.unlink()
    stage.checks_wrong(stage.config(root), says=[picture, 'does not exist'])


@case('no masks', 'train')
def masks_missing(stage: Stage) -> None:
    root = stage.birds()
    for path in root.rglob('*_mask.png'):
        path.unlink()
    stage.refuses('train', stage.config(root), says=['_mask.png', 'mask_dir', '`mmgap masks`'])


@case('an all-black mask', 'train')
def mask_black(stage: Stage) -> None:
    refuse_mask(stage, lambda pixels: pixels * 0, says=['no foreground'])


@case('an all-white mask', 'train')
def mask_white(stage: Stage) -> None:
    refuse_mask(stage, lambda pixels: pixels * 0 + 255, says=['covers the whole image'])


@case('a mask of another size than its image', 'train')
def mask_size(stage: Stage) -> None:
    refuse_mask(stage, lambda pixels: pixels[:-7], says=['must be of one size'])


@case('a mask of one pixel', 'train')
def mask_one_pixel(stage: Stage) -> None:
    def one(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels * 0
        pixels[30, 30] = 255
        return pixels

    refuse_mask(stage, one, says=['no foreground'])


@case('a mask of zero bytes', 'train')
def mask_zero_bytes(stage: Stage) -> None:
    root = stage.birds()
    masks = damage_masks(root, lambda path: path.write_bytes(b''))
    stage.refuses('train', stage.config(root), says=[masks[0].parent.parent, '_mask.png'])


@case('a data folder with blanks and signs of four scripts in its name', 'train')
def path_unicode(stage: Stage) -> None:
    root = stage.folder / 'Vögel und 鳥 หมู צ'
    stage.birds().rename(root)
    stage.accepts('train', stage.config(root))
    assert stage.summary()['images'] == 2


@case('a class folder without images', 'train')
def class_empty(stage: Stage) -> None:
    root = folders(stage, {'landbird': 3, 'waterbird': 0})
    stage.refuses('train', folder_config(stage, root), says=[root / 'waterbird', 'no images'])


@case('a class in train that test has not, with another number there', 'check')
def class_lost(stage: Stage) -> None:
    train = folders(stage, {'ant': 3, 'bee': 3, 'cat': 3}, 'train')
    test = folders(stage, {'ant': 2, 'cat': 2}, 'test')
    config = folder_config(stage, train, test, classes=3)
    stage.accepts('check', config, '--tiny', says=['ready', 'ant 2, bee 0, cat 2'])


@case('one image of each class', 'train')
def one_image_each(stage: Stage) -> None:
    root = folders(stage, {'landbird': 1, 'waterbird': 1})
    says = ['has 1 sources', 'evaluated on the same ones']
    stage.accepts('train', folder_config(stage, root), says=says)
    assert stage.summary()['images'] == 2


@case('10,000 classes', 'check')
def many_classes(stage: Stage) -> None:
    root = folders(stage, {f'class {i:05d}': 1 for i in range(10_000)})
    config = folder_config(stage, root, classes=10_000, hook__search__holdout=0)
    stage.accepts('check', config, says=['10000 samples', 'ready'])


@case('classes whose names differ in a vowel sign alone', 'check')
def class_signs(stage: Stage) -> None:
    root = folders(stage, {'หมู': 4, 'หมี': 4})
    stage.accepts('check', folder_config(stage, root), says=['หมู 4', 'หมี 4', 'ready'])


@case('a model with fewer classes than the data', 'train')
def classes_more(stage: Stage) -> None:
    root = folders(stage, {'ant': 3, 'bee': 3, 'cat': 3})
    stage.refuses('train', folder_config(stage, root), says=['num_classes', '2', '3'])


@case('the fold that is held out, of a KFoldDataset', 'check')
def k_fold(stage: Stage) -> None:
    root = folders(stage, {'landbird': 6, 'waterbird': 6})
    config = folder_config(stage, root)
    fold = (
        'for test, loader in enumerate([train_dataloader, test_dataloader]):\n'
        "    loader['dataset'] = dict(type='KFoldDataset', fold=0, num_splits=3, seed=1,\n"
        "        test_mode=bool(test), dataset=dict(train_dataloader['dataset'] if test == 0\n"
        "        else train_dataloader['dataset']['dataset']))\n"
        'del test, loader\n'
    )
    config.write_text(config.read_text() + fold)
    stage.accepts('check', config, says=['8 samples', '4 samples', 'no source is among the others'])


@case('a class folder that is a link to a folder elsewhere', 'check')
def class_link(stage: Stage) -> None:
    root = folders(stage, {'landbird': 4, 'waterbird': 4})
    (root / 'waterbird').rename(stage.folder / 'elsewhere')
    (root / 'waterbird').symlink_to(stage.folder / 'elsewhere')
    stage.accepts('check', folder_config(stage, root), says=['waterbird 4', 'ready'])


@case('a picture that is a dangling link', 'check')
def picture_dangling(stage: Stage) -> None:
    root = folders(stage, {'landbird': 4, 'waterbird': 4})
    path = root / 'waterbird' / '0.jpg'
    path.unlink()
    path.symlink_to(stage.folder / 'nothing.jpg')
    stage.checks_wrong(folder_config(stage, root), says=[path])


# What the cases share


def rewrite(root: Path, change) -> None:
    """Change the text of metadata.csv."""
    path = root / 'metadata.csv'
    path.write_text(change(path.read_text(encoding='utf-8')), encoding='utf-8')


def train_pictures(root: Path) -> list[Path]:
    """The pictures of the train split."""
    with (root / 'metadata.csv').open(newline='') as file:
        return [root / row['img_filename'] for row in csv.DictReader(file) if row['split'] == '0']


def damage_masks(root: Path, damage) -> list[Path]:
    """Damage all masks of the train split: which are read depends on chance."""
    masks = [path.with_name(f'{path.stem}_mask.png') for path in train_pictures(root)]
    for mask in masks:
        damage(mask)
    return masks


def refuse_mask(stage: Stage, change, says: list[str]) -> None:
    """Change the masks of the train split, and see that a training ends for one of them."""
    root = stage.birds()

    def changed(path: Path) -> None:
        Image.fromarray(change(np.array(Image.open(path)))).save(path)

    damage_masks(root, changed)
    stage.refuses('train', stage.config(root), says=[root, '_mask.png', *says])


def folders(stage: Stage, counts: dict[str, int], name: str = 'folders') -> Path:
    """A folder for each class, with links to so many pictures and their masks."""
    picture = train_pictures(stage.shared.birds)[0]
    mask = picture.with_name(f'{picture.stem}_mask.png')
    for label, count in counts.items():
        folder = stage.folder / name / label
        folder.mkdir(parents=True)
        for i in range(count):
            os.link(picture, folder / f'{i}.jpg')
            os.link(mask, folder / f'{i}_mask.png')
    return stage.folder / name


def folder_config(
    stage: Stage, train: Path, test: Path | None = None, classes: int = 2, **changes
) -> Path:
    """A config of such folders."""
    path = stage.config(model__head__num_classes=classes, **changes)
    text = path.read_text()
    for split, root, masks in (('train', train, True), ('test', test or train, False)):
        settings = dict(type='mmgap.MaskedFolders', data_root=str(root), with_masks=masks)
        text += (
            f"{split}_dataloader['dataset'] = dict({settings!r}, "
            f"pipeline={split}_dataloader['dataset']['pipeline'])\n"
        )
    flip = dict(type='mmgap.AdversarialLoss', mode='untargeted')
    text += "test_evaluator = [dict(type='mmgap.MacroF1')]\n"
    text += f"model['data_preprocessor']['num_classes'] = {classes}\n"
    text += f"custom_hooks[0]['feedback'] = [{flip!r}]\n"
    path.write_text(text)
    return path
