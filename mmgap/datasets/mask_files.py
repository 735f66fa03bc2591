# SPDX-License-Identifier: Apache-2.0
"""Mask files of a dataset: all there, or refused."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.fileio import exists, isdir, list_dir_or_file


def check_masks(infos: Sequence[Mapping[str, Any]], what: str) -> None:
    """See that every mask exists.

    Without its mask an object would be painted over, so that the label no longer holds: a dataset
    is complete or it is refused.

    Args:
        infos: Data infos with ``mask_path``.
        what: Whose they are, for the message.

    Raises:
        FileNotFoundError: If one is missing; names the first, and what lies in its place.
        ValueError: If two images would have the same.
    """
    images: dict[str, str] = {}
    for info in infos:
        other = images.setdefault(info['mask_path'], info['img_path'])
        if other != info['img_path']:
            raise ValueError(
                f'{other} and {info["img_path"]} would have the same mask {info["mask_path"]}; '
                'rename one, or, if one is the mask of the other, to that name'
            )
    missing = [info['mask_path'] for info in infos if not exists(info['mask_path'])]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(infos)} masks of {what} are missing, the first is '
            f'{missing[0]}{_instead(missing[0])}. Put them there, make them with '
            '`mmgap masks`, name their folder with mask_dir=…, or set with_masks=False if nothing '
            'is generated from these images'
        )


def _instead(path: str) -> str:
    """What there is where a mask should be."""
    folder, name = osp.split(path)
    if not isdir(folder):
        return f'; there is no folder {folder}'
    files = sorted(list_dir_or_file(folder, list_dir=False))
    alike = [file for file in files if 'mask' in file]
    if not alike and 'mask' in name:
        return ''  # what there is are the images
    alike = alike or files
    if not alike:
        return f'; {folder} is empty'
    return f'; that folder has {len(alike)} other files like {alike[0]}'
