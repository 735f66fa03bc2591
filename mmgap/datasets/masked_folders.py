# SPDX-License-Identifier: Apache-2.0
"""A folder for each class, and masks: any user's data without code."""

from __future__ import annotations

import os
import os.path as osp
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, join_path, list_dir_or_file
from mmengine.utils import is_abs

from mmgap.datasets.mask_files import check_masks
from mmgap.registry import DATASETS

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
BESIDE = '_mask.png'  # how the name of a mask ends that lies beside its image


def list_images(folder: str) -> list[str]:
    """Paths of the images in a folder and below, relative to it, without masks or what is hidden.

    Args:
        folder: Any path that ``mmengine.fileio`` can read.
    """
    return sorted(
        name
        for name in list_dir_or_file(folder, list_dir=False, recursive=True)
        if name.lower().endswith(IMAGES)
        and not name.lower().endswith(BESIDE)
        and not any(part.startswith('.') for part in name.split('/'))
    )


@DATASETS.register_module()
class MaskedFolders(BaseDataset):
    """Images in a folder for each class, with masks of the object.

    Classes are the folders in ``data_root`` by name, or ``metainfo=dict(classes=…)``. A data info
    holds ``img_path``, ``gt_label``, ``sample_idx`` and, with masks, ``mask_path``.

    Args:
        data_root: Folder of the class folders, which may hold folders themselves; any path that
            ``mmengine.fileio`` can read.
        with_masks: Whether data infos carry ``mask_path``; every mask file must then exist. Sources
            of generation need them, other splits do not.
        mask_dir: Folder of the masks, absolute or relative to ``data_root``. The mask of
            ``class/name.jpg`` is ``class/name.png`` in it. None looks beside the image for
            ``class/name_mask.png``. Inside ``data_root`` it is no class, also without masks.
        **kwargs: The other arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If a folder, a class's images or a mask is missing.
    """

    def __init__(
        self, data_root: str, with_masks: bool = True, mask_dir: str | None = None, **kwargs: Any
    ) -> None:
        self.with_masks = with_masks
        self.mask_dir = mask_dir
        super().__init__(ann_file='', data_root=osp.expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Walk the class folders; ``classes`` is then known."""
        if not exists(self.data_root):
            raise FileNotFoundError(f'data_root={self.data_root!r} does not exist')
        masks = self._mask_root()
        no_class = osp.relpath(masks, self.data_root).split(os.sep)[0] if masks else None
        found = list_dir_or_file(self.data_root, list_file=False)
        folders = sorted(name for name in found if name != no_class and not name.startswith('.'))
        classes = self._metainfo.setdefault('classes', tuple(folders))
        missing = [name for name in classes if name not in folders]
        if missing or not classes:
            raise FileNotFoundError(
                f'{self.data_root} has no folder of classes {missing}; it has {folders}'
                if missing
                else f'{self.data_root} has no folders, one for each class'
            )
        infos = []
        for label, name in enumerate(classes):
            images = list_images(join_path(self.data_root, name))
            if not images:
                raise FileNotFoundError(f'{join_path(self.data_root, name)} has no images')
            for image in images:
                info = dict(img_path=join_path(self.data_root, name, image), gt_label=label)
                if self.with_masks:
                    info['mask_path'] = self._mask_path(masks, f'{name}/{image}')
                infos.append(info)
        if self.with_masks:
            check_masks(infos, self.data_root)
        return infos

    def get_cat_ids(self, idx: int) -> list[int]:
        """The label of sample ``idx`` in a list, as ``ClassBalancedDataset`` wants it."""
        return [self.get_data_info(idx)['gt_label']]

    def _mask_root(self) -> str | None:
        if self.mask_dir is None:
            return None
        folder = osp.expanduser(self.mask_dir)
        return folder if is_abs(folder) else join_path(self.data_root, folder)

    def _mask_path(self, masks: str | None, name: str) -> str:
        stem = osp.splitext(name)[0]
        if masks is None:
            return join_path(self.data_root, stem + BESIDE)
        return join_path(masks, f'{stem}.png')

    def _join_prefix(self) -> None:
        """Paths are complete already."""
