# SPDX-License-Identifier: Apache-2.0
"""Waterbirds: two kinds of birds pasted on two kinds of places, correlated in training only."""

import csv
import hashlib
import io
import os
import posixpath
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, join_path
from mmengine.utils import is_abs

from mmgap.datasets.mask_files import check_masks
from mmgap.files import read_text
from mmgap.registry import DATASETS
from mmgap.typed import typed

SPLITS = {'train': 0, 'val': 1, 'test': 2}
NUM_PLACES = 2
NUM_GROUPS = 4
REQUIRED_COLUMNS = ('img_filename', 'y', 'split', 'place')


@DATASETS.register_module()
@typed
class Waterbirds(BaseDataset):
    """Waterbirds in the layout of WILDS: ``metadata.csv`` and the image folders it names.

    ``metadata.csv`` has the columns ``img_filename`` (relative to ``data_root``), ``y`` (0 is
    landbird, 1 waterbird), ``split`` (0 is train, 1 val, 2 test) and ``place`` (0 is land, 1
    water); others are ignored. The birds come from CUB-200-2011, so its segmentations fit: the
    folder that they unpack to is ``mask_dir``.

    A data info holds ``img_path``, ``gt_label``, ``group`` (``2 * label + place``), ``sample_idx``
    and, with masks, ``mask_path``. The metainfo holds ``classes``, ``groups`` and, once loaded,
    ``train_group_counts``: the samples of each group in the *train* split, whatever ``split`` is,
    as the adjusted accuracy of :class:`mmgap.GroupAccuracy` needs them.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020;
    layout and group order as in WILDS (Koh et al., ICML 2021).

    Args:
        data_root: folder of ``metadata.csv``; any path that ``mmengine.fileio`` can read.
        split: ``'train'``, ``'val'`` or ``'test'``.
        with_masks: whether data infos carry ``mask_path``; every mask file must then exist. None
            (default) means yes for ``'train'``, whose images are sources of generation, and no for
            the others.
        mask_dir: folder of the masks, absolute or relative to ``data_root``. The mask of
            ``folder/name.jpg`` is ``folder/name.png`` in it. None (default) looks beside the image
            for ``folder/name_mask.png``.
        correlated: whether to leave out the images whose bird does not fit the place: the
            100 %-correlated subset, where the place tells the bird. The paper of GAP trains on it.
        num_samples: take only so many, always the same, spread over the file; None takes all.
        **kwargs: the other arguments of :class:`mmengine.dataset.BaseDataset` (``pipeline``,
            ``test_mode``, ``indices``, ``lazy_init``, …).

    Raises:
        FileNotFoundError: ``metadata.csv`` or, with masks, a mask is missing.
        ValueError: an unknown split, a missing column, a value that is no label, place or split, or
            a split without samples, or with fewer than ``num_samples``.

    Examples:
        >>> dict(type='mmgap.Waterbirds', data_root='data/waterbirds', split='train',
        ...      mask_dir='../segmentations', pipeline=train_pipeline)
    """

    METAINFO = dict(
        classes=('landbird', 'waterbird'),
        groups=('landbird-land', 'landbird-water', 'waterbird-land', 'waterbird-water'),
    )

    def __init__(
        self,
        data_root: str,
        split: str,
        with_masks: bool | None = None,
        mask_dir: str | None = None,
        correlated: bool = False,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'Waterbirds: split={split!r} must be one of {sorted(SPLITS)}')
        if with_masks is False and mask_dir is not None:
            raise ValueError(
                f'Waterbirds: mask_dir={mask_dir!r} has no use with with_masks=False; drop one'
            )
        if with_masks is None:
            with_masks = split == 'train' or mask_dir is not None
        self.split = split
        self.with_masks = with_masks
        self.mask_dir = mask_dir
        self.correlated = correlated
        self.num_samples = num_samples
        super().__init__(ann_file='metadata.csv', data_root=os.path.expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads ``metadata.csv``; called by ``full_init``.

        Returns:
            One dict for each sample of the split, in the order of the file.
        """
        rows = read_metadata(self.ann_file)
        train = [group_of(row) for row in rows if row['split'] == SPLITS['train']]
        counts = [train.count(group) for group in range(NUM_GROUPS)]
        data_list = []
        for row in self._taken(rows):
            info = dict(
                img_path=join_path(self.data_root, row['img_filename']),
                gt_label=row['y'],
                group=group_of(row),
            )
            if self.with_masks:
                info['mask_path'] = self._mask_path(row['img_filename'])
            data_list.append(info)
        if not data_list:
            raise ValueError(f'{self.ann_file}: no sample has split={SPLITS[self.split]}')
        if self.with_masks:
            check_masks(data_list, f'split {self.split!r}')
        self._metainfo['train_group_counts'] = tuple(counts)
        return data_list

    def _taken(self, rows: list[dict]) -> list[dict]:
        taken = [
            row
            for row in rows
            if row['split'] == SPLITS[self.split]
            and not (self.correlated and row['y'] != row['place'])
        ]
        if self.num_samples is None:
            return taken
        if not 0 < self.num_samples <= len(taken):
            raise ValueError(
                f'Waterbirds: num_samples={self.num_samples} must be from 1 to the {len(taken)} '
                'samples there are'
            )
        # By name: the file is sorted by species, so its first rows would be a few of them.
        names = [row['img_filename'] for row in taken]
        first = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen = set(first[: self.num_samples])
        return [row for row in taken if row['img_filename'] in chosen]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Returns the label of sample ``idx`` in a list, as ``ClassBalancedDataset`` wants it."""
        return [self.get_data_info(idx)['gt_label']]

    def _mask_path(self, img_filename: str) -> str:
        stem = posixpath.splitext(img_filename)[0]
        if self.mask_dir is None:
            return join_path(self.data_root, f'{stem}_mask.png')
        mask_dir = os.path.expanduser(self.mask_dir)
        if not is_abs(mask_dir):
            mask_dir = join_path(self.data_root, mask_dir)
        return join_path(mask_dir, f'{stem}.png')


def group_of(row: dict) -> int:
    """``2 * label + place``."""
    return NUM_PLACES * row['y'] + row['place']


def read_metadata(path: str) -> list[dict]:
    """Reads and checks a ``metadata.csv`` of Waterbirds.

    Args:
        path: any path that ``mmengine.fileio`` can read.

    Returns:
        One dict for each row: ``img_filename`` (str), ``y`` and ``place`` (0 or 1), ``split`` (0, 1
        or 2).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or a value is none of the above.
    """
    if not exists(path):
        raise FileNotFoundError(
            f'{path} does not exist: data_root must be the folder of the unpacked Waterbirds data, '
            'with metadata.csv in it'
        )
    reader = csv.DictReader(io.StringIO(read_text(path), newline=''))
    found = list(reader.fieldnames or [])
    missing = [column for column in REQUIRED_COLUMNS if column not in found]
    if missing:
        raise ValueError(f'{path}: missing column(s) {missing}; found {found}')
    allowed = {'y': (0, 1), 'place': (0, 1), 'split': tuple(SPLITS.values())}
    rows = []
    for raw in reader:
        where = f'{path}, line {reader.line_num}'
        if not raw['img_filename']:
            raise ValueError(f'{where}: img_filename is empty')
        row = {'img_filename': raw['img_filename']}
        for column, values in allowed.items():
            row[column] = _parse_choice(raw[column], values, f'{where}: {column}')
        rows.append(row)
    return rows


def _parse_choice(text: str | None, values: tuple[int, ...], name: str) -> int:
    for value in values:
        # Pandas writes integer columns that once held a NaN as '1.0'.
        if text is not None and text.strip() in (str(value), f'{value}.0'):
            return value
    raise ValueError(f'{name}={text!r} must be one of {list(values)}')
