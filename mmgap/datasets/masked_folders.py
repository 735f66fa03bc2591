# SPDX-License-Identifier: Apache-2.0
"""A folder for each class, and masks: any user's data without code."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, join_path, list_dir_or_file
from mmengine.logging import MMLogger
from mmengine.utils import is_abs

from mmgap.datasets.mask_files import check_masks
from mmgap.images import SUFFIXES
from mmgap.registry import DATASETS
from mmgap.typed import typed

BESIDE = '_mask.png'  # how the name of a mask ends that lies beside its image


def list_images(folder: str) -> list[str]:
    """Paths of the images in a folder and below, relative to it, without masks or what is hidden.

    Args:
        folder: Any path that ``mmengine.fileio`` can read.
    """
    return [name for name in _visible(folder) if name.lower().endswith(SUFFIXES)]


def list_others(folder: str) -> list[str]:
    """Paths of what :func:`list_images` leaves out and is neither a mask nor hidden."""
    return [name for name in _visible(folder) if not name.lower().endswith(SUFFIXES)]


def _visible(folder: str) -> list[str]:
    return sorted(
        name
        for name in _files(folder)
        if not name.lower().endswith(BESIDE)
        and not any(part.startswith('.') for part in name.split('/'))
    )


def _files(folder: str) -> Iterator[str]:
    """Paths of files in a folder and below, relative to it; those that are hidden may be left out.

    Raises:
        FileNotFoundError: If one is a link to nothing, which MMEngine's listing leaves out.
    """
    if '://' in folder:
        yield from list_dir_or_file(folder, list_dir=False, recursive=True)
        return
    below = ['']
    while below:
        inside = below.pop()
        with os.scandir(osp.join(folder, inside)) as entries:
            for entry in entries:
                name = f'{inside}{entry.name}'
                if entry.name.startswith('.'):
                    continue
                if entry.is_dir():
                    below.append(f'{name}/')
                elif entry.is_symlink() and not osp.exists(entry.path):
                    raise FileNotFoundError(
                        f'{entry.path} is a link to {os.readlink(entry.path)}, which does not '
                        'exist; bring that back, or delete the link'
                    )
                else:
                    yield name


@DATASETS.register_module()
@typed
class MaskedFolders(BaseDataset):
    """Images in a folder for each class, with masks of the object.

    Classes are the folders in ``data_root`` by name, or ``classes``: a split that lacks a class
    would else number the others anew. A data info holds ``img_path``, ``gt_label``, ``sample_idx``
    and, with masks, ``mask_path``.

    Args:
        data_root: Folder of the class folders, which may hold folders themselves; any path that
            ``mmengine.fileio`` can read.
        with_masks: Whether data infos carry ``mask_path``; every mask file must then exist. Sources
            of generation need them, other splits do not.
        mask_dir: Folder of the masks, absolute or relative to ``data_root``. The mask of
            ``class/name.jpg`` is ``class/name.png`` in it. None looks beside the image for
            ``class/name_mask.png``. Inside ``data_root`` it is no class, also without masks.
        classes: Names of the classes, in the order of their numbers; the same as
            ``metainfo=dict(classes=…)``. A class may then have no images. mmgap's tools give those
            of the training data to the other splits (:func:`share_classes`).
        **kwargs: The other arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If a folder, a class's images or a mask is missing.
        ValueError: If a folder is none of ``classes``, two images would have one mask, or there is
            a ``data_prefix``.

    Attributes:
        left_out: Files in the class folders that are taken for no images.
    """

    def __init__(
        self,
        data_root: str,
        with_masks: bool = True,
        mask_dir: str | None = None,
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        prefix = kwargs.get('data_prefix') or {}
        named = prefix.values() if isinstance(prefix, dict) else [prefix]
        if any(named):
            raise ValueError(
                f'MaskedFolders has no data_prefix, got {prefix!r}; name the folder of the class '
                'folders in data_root'
            )
        self.with_masks = with_masks
        self.mask_dir = mask_dir
        if classes is not None:
            kwargs['metainfo'] = dict(kwargs.get('metainfo') or {}, classes=tuple(classes))
        super().__init__(ann_file='', data_root=osp.expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Walk the class folders; ``classes`` is then known."""
        masks = mask_root(self.data_root, self.mask_dir)
        folders = class_folders(self.data_root, self.mask_dir)
        given = self._metainfo.get('classes')
        classes = self._metainfo.setdefault('classes', tuple(folders))
        strange = [name for name in folders if name not in classes]
        if strange:
            raise ValueError(
                f'{self.data_root} has the folders {strange}, which are none of the classes '
                f'{[*classes]}; name them in classes=[…] of the training data, name a folder '
                'of masks in mask_dir=…, or take them away'
            )
        infos, empty, self.left_out = [], [], []
        for label, name in enumerate(classes):
            folder = join_path(self.data_root, name)
            images = list_images(folder) if name in folders else []
            if name in folders:
                self.left_out += [join_path(folder, other) for other in list_others(folder)]
            if not images:
                empty.append(name)
            for image in images:
                info = dict(img_path=join_path(self.data_root, name, image), gt_label=label)
                if self.with_masks:
                    info['mask_path'] = self._mask_path(masks, f'{name}/{image}')
                infos.append(info)
        if empty and (given is None or not infos):
            raise FileNotFoundError(
                f'{" and ".join(join_path(self.data_root, name) for name in empty)} has no images'
            )
        if self.left_out:
            MMLogger.get_current_instance().warning(left_out_note(self.left_out))
        if empty:
            MMLogger.get_current_instance().warning(
                f'{self.data_root} has no images of class {", ".join(empty)}'
            )
        if self.with_masks:
            check_masks(infos, self.data_root)
        return infos

    def get_cat_ids(self, idx: int) -> list[int]:
        """The label of sample ``idx`` in a list, as ``ClassBalancedDataset`` wants it."""
        return [self.get_data_info(idx)['gt_label']]

    def _mask_path(self, masks: str | None, name: str) -> str:
        stem = osp.splitext(name)[0]
        if masks is None:
            return join_path(self.data_root, stem + BESIDE)
        return join_path(masks, f'{stem}.png')

    def _join_prefix(self) -> None:
        """Paths are complete already."""


def left_out_note(names: Sequence[str]) -> str:
    """What to say of files in class folders that are no images."""
    return f'{len(names)} file(s) are left out, they end with none of {SUFFIXES}: {names[0]} …'


def mask_root(data_root: str, mask_dir: str | None) -> str | None:
    """The folder of the masks; None where they lie beside the images."""
    if mask_dir is None:
        return None
    folder = osp.expanduser(mask_dir)
    return folder if is_abs(folder) else join_path(data_root, folder)


def class_folders(data_root: str, mask_dir: str | None = None) -> list[str]:
    """The folders in ``data_root`` by name, without that of the masks and what is hidden.

    Raises:
        FileNotFoundError: If there are none.
    """
    if not exists(data_root):
        raise FileNotFoundError(f'data_root={data_root!r} does not exist')
    masks = mask_root(data_root, mask_dir)
    no_class = osp.relpath(masks, data_root).split(os.sep)[0] if masks else None
    found = list_dir_or_file(data_root, list_file=False)
    folders = sorted(name for name in found if name != no_class and not name.startswith('.'))
    if not folders:
        raise FileNotFoundError(f'{data_root} has no folders, one for each class')
    return folders


def share_classes(config: Mapping[str, Any]) -> None:
    """Give MaskedFolders for evaluation the classes of the training data, if they name none.

    Each split would else number the folders that *it* has.

    Args:
        config: A run's config, which is changed.
    """
    loaders = [config.get(f'{split}_dataloader') or {} for split in ('train', 'val', 'test')]
    train, *others = ([*_masked_folders(loader.get('dataset'))] for loader in loaders)
    without = [part for parts in others for part in parts if _classes(part) is None]
    if not train or not without:
        return
    classes = _classes(train[0])
    if classes is None:
        root = osp.expanduser(train[0].get('data_root') or '')
        try:
            classes = class_folders(root, train[0].get('mask_dir'))
        except FileNotFoundError:
            return  # building it will say so
    for part in without:
        part['classes'] = [*classes]


def _masked_folders(dataset: Any) -> Iterator[ConfigDict]:
    """The configs of MaskedFolders in that of a dataset, inside of wrappers too."""
    if not isinstance(dataset, Mapping):
        return
    kind = dataset.get('type')
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    if name.rpartition('.')[2] == MaskedFolders.__name__:
        yield dataset
    for part in (dataset.get('dataset'), *(dataset.get('datasets') or ())):
        yield from _masked_folders(part)


def _classes(settings: Mapping[str, Any]) -> Sequence[str] | None:
    return settings.get('classes') or (settings.get('metainfo') or {}).get('classes')
