# SPDX-License-Identifier: Apache-2.0
"""iWildCam: animals before camera traps, seen at other places in training than at test."""

from __future__ import annotations

import csv
import hashlib
import io
import os.path as osp
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, join_path

from mmgap.files import read_text
from mmgap.registry import DATASETS
from mmgap.typed import typed

CLASSES = ('background', 'cattle', 'elephants', 'impalas', 'zebras', 'giraffes', 'dik-diks')
BACKGROUND = 0
SPLITS = ('train', 'val', 'test', 'id_val', 'id_test', 'guidance')
COLUMNS = ('filename', 'y', 'split', 'location', 'sequence', 'hour')
# Hours of the day, as in arXiv 2403.15309.
TIMES = {
    'day': tuple(range(9, 18)),
    'night': (*range(0, 6), *range(20, 24)),
}


def in_guidance(sequence: str, share: float) -> bool:
    """Whether a sequence belongs to the share that is held out for guidance; always the same."""
    digest = hashlib.sha256(f'guidance {sequence}'.encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


@DATASETS.register_module()
@typed
class IWildCam(BaseDataset):
    """The seven classes of ALIA (arXiv 2305.16289) out of iWildCam in WILDS' splits.

    Reads what ``tools/dataset_converters/iwildcam.py`` makes of WILDS' files: images without their
    strip of camera data, masks, and ``metadata.csv`` with the columns ``filename``, ``y`` (index
    among the classes), ``split``, ``location``, ``sequence`` and ``hour``.

    A data info holds ``img_path``, ``gt_label``, ``location``, ``sequence``, ``hour``,
    ``sample_idx`` and, with masks, ``mask_path``; one of the guidance split holds ``img_path``
    alone.

    Images for guidance are a part of the *test* images that is split off by sequence, since a
    sequence shows one scene several times. Numbers on what is left cannot be compared with those
    of the paper, which guides with test images.

    Args:
        data_root: Folder of ``metadata.csv``; any path that ``mmengine.fileio`` can read.
        split: ``'train'``, ``'val'``, ``'test'``, ``'id_val'``, ``'id_test'`` or ``'guidance'``.
        locations: Take only images of these; all by default.
        time: ``'day'`` (9 to 17 o'clock), ``'night'`` (20 to 5 o'clock) or None for all hours.
        hours: Take only images of these hours, 0 to 23, instead of a ``time``.
        guidance_share: Share of the test sequences that is held out for guidance, in [0, 1). Give
            the same to ``'test'`` and ``'guidance'``.
        with_masks: Whether data infos carry ``mask_path``: sources of generation need it. Animals
            without a mask, which the detector did not find, are then left out. Background has no
            masks: of those images a generator keeps nothing.
        **kwargs: The other arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If ``metadata.csv`` is missing.
        ValueError: If an argument is unknown, a column is missing, or no image is left.
    """

    METAINFO = dict(classes=CLASSES, background=CLASSES[:1])

    def __init__(
        self,
        data_root: str,
        split: str,
        locations: Sequence[int] | None = None,
        time: str | None = None,
        hours: Sequence[int] | None = None,
        guidance_share: float = 0.25,
        with_masks: bool = False,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'IWildCam: split={split!r} must be one of {SPLITS}')
        if time is not None and time not in TIMES:
            raise ValueError(f'IWildCam: time={time!r} must be one of {sorted(TIMES)}, or None')
        if hours is not None and (time is not None or not set(hours) <= set(range(24))):
            raise ValueError(
                f'IWildCam: hours={hours!r} must be from 0 to 23 and are given instead of a time, '
                f'not beside time={time!r}'
            )
        if not 0 <= guidance_share < 1:
            raise ValueError(f'IWildCam: guidance_share must be in [0, 1), got {guidance_share}')
        self.split = split
        self.locations = None if locations is None else {str(place) for place in locations}
        self.hours = hours if time is None else TIMES[time]
        self.guidance_share = guidance_share
        self.with_masks = with_masks
        super().__init__(ann_file='metadata.csv', data_root=osp.expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read ``metadata.csv``."""
        infos = [self._info(row) for row in read_rows(self.ann_file) if self._takes(row)]
        if self.with_masks:
            infos = [i for i in infos if 'mask_path' not in i or exists(i['mask_path'])]
        if not infos:
            raise ValueError(
                f'{self.ann_file}: no image of split {self.split!r} is left'
                + (' that has a mask' if self.with_masks else '')
                + ('' if self.locations is None else f' at locations {sorted(self.locations)}')
                + ('' if self.hours is None else f' at the hours {self.hours}')
            )
        return infos

    def get_cat_ids(self, idx: int) -> list[int]:
        """The label of sample ``idx`` in a list, as ``ClassBalancedDataset`` wants it."""
        return [self.get_data_info(idx)['gt_label']]

    def _takes(self, row: dict[str, Any]) -> bool:
        if row['split'] != ('test' if self.split == 'guidance' else self.split):
            return False
        if row['split'] == 'test':
            held_out = in_guidance(row['sequence'], self.guidance_share)
            if held_out != (self.split == 'guidance'):
                return False
        right_place = self.locations is None or row['location'] in self.locations
        return right_place and (self.hours is None or row['hour'] in self.hours)

    def _info(self, row: dict[str, Any]) -> dict[str, Any]:
        info = dict(img_path=join_path(self.data_root, 'images', row['filename']))
        if self.split == 'guidance':
            return info
        info.update(gt_label=row['y'], location=row['location'])
        info.update(sequence=row['sequence'], hour=row['hour'])
        if self.with_masks and row['y'] != BACKGROUND:
            name = osp.splitext(row['filename'])[0] + '.png'
            info['mask_path'] = join_path(self.data_root, 'masks', name)
        return info

    def _join_prefix(self) -> None:
        self.ann_file: str = join_path(self.data_root, self.ann_file)


def read_rows(path: str) -> list[dict[str, Any]]:
    """Read and check a converted ``metadata.csv``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a column is missing, or a class or an hour is none.
    """
    if not exists(path):
        raise FileNotFoundError(
            f'{path} does not exist: data_root must be the folder that '
            'tools/dataset_converters/iwildcam.py wrote (`mim run mmgap iwildcam` runs it, too)'
        )
    reader = csv.DictReader(io.StringIO(read_text(path), newline=''))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f'{path}: missing column(s) {missing}; found {reader.fieldnames}')
    rows = []
    for raw in reader:
        row: dict[str, Any] = dict(raw)
        for name, number in (('y', len(CLASSES)), ('hour', 24)):
            if raw[name] not in map(str, range(number)):
                raise ValueError(
                    f'{path}, line {reader.line_num}: {name}={raw[name]!r} must be one of 0 to '
                    f'{number - 1}'
                )
            row[name] = int(raw[name])
        rows.append(row)
    return rows
