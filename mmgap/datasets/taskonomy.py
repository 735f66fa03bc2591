# SPDX-License-Identifier: Apache-2.0
"""Taskonomy's depth."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, list_dir_or_file

from mmgap.registry import DATASETS
from mmgap.typed import typed

_RGB = re.compile(r'(.*/)?(?P<building>[^/]+)/point_\d+_view_\d+_domain_rgb\.png')


@DATASETS.register_module()
@typed
class Taskonomy(BaseDataset):
    """Images of buildings with z-buffer depth (Zamir et al., arXiv 1804.08328).

    .. code-block:: none

        DATA_ROOT/rgb/BUILDING/point_0_view_0_domain_rgb.png
        DATA_ROOT/depth_zbuffer/BUILDING/point_0_view_0_domain_depth_zbuffer.png
        DATA_ROOT/mask_valid/BUILDING/point_0_view_0_domain_depth_zbuffer.png

    A folder between domain and building (``rgb/taskonomy/BUILDING``, as the omnidata tools download
    it) is fine. Depth is 16-bit in units of 1/512 m with 65535 where the mesh has a hole; masks are
    optional. To load it: ``dict(type='mmgap.LoadDepth', depth_rescale_factor=1 / 512,
    unknown=65535)``.

    Args:
        data_root: Folder with ``rgb`` and ``depth_zbuffer``.
        buildings: Only these; all by default. Splits of Taskonomy are lists of buildings.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If there is no image, one of ``buildings`` is not there, or an image has
            no depth map; names what is missing.
    """

    def __init__(
        self, data_root: str, buildings: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        self.buildings = None if buildings is None else tuple(buildings)
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Lists the images with their depth maps, and masks where there are some."""
        root = osp.join(self.data_root, 'rgb')
        if not exists(root):
            raise FileNotFoundError(f'data_root={self.data_root!r} has no folder rgb')
        masks = exists(osp.join(self.data_root, 'mask_valid'))
        infos, seen = [], set()
        found = list_dir_or_file(root, list_dir=False, suffix='_domain_rgb.png', recursive=True)
        for name in sorted(found):
            match = _RGB.fullmatch(name)
            if match is None:
                continue
            seen.add(match['building'])
            if self.buildings is not None and match['building'] not in self.buildings:
                continue
            depth_name = name.replace('_domain_rgb.png', '_domain_depth_zbuffer.png')
            info: dict[str, Any] = dict(
                img_path=osp.join(root, name),
                depth_map_path=osp.join(self.data_root, 'depth_zbuffer', depth_name),
                building=match['building'],
                seg_fields=[],
            )
            if not exists(info['depth_map_path']):
                raise FileNotFoundError(
                    f'{info["img_path"]} has no depth map {info["depth_map_path"]}'
                )
            mask_path = osp.join(self.data_root, 'mask_valid', depth_name)
            if masks and exists(mask_path):
                info['depth_mask_path'] = mask_path
            infos.append(info)
        missing = sorted(set(self.buildings or ()) - seen)
        if missing or not infos:
            what = f'buildings {missing}' if missing else 'images *_domain_rgb.png'
            raise FileNotFoundError(f'{root} has no {what}')
        return infos

    def _join_prefix(self) -> None:
        """Paths are complete already, and there is no annotation file."""
