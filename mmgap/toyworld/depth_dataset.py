# SPDX-License-Identifier: Apache-2.0
"""ToyDepth: scenes with metric depth, drawn when they are read."""

from __future__ import annotations

import importlib.util
from typing import Any

from mmengine.dataset import BaseDataset

from mmgap.registry import DATASETS
from mmgap.toyworld.backend import ToyDepthBackend
from mmgap.toyworld.depth_splits import DEPTH_SIZES, DEPTH_UNLABELLED, SHIFTS, shift_of
from mmgap.toyworld.renderer import WORLD_VERSION
from mmgap.typed import typed

# Splits that are others in turn.
IN_TURN = {
    'test': tuple(f'test_{shift}' for shift in SHIFTS),
    'test_2': tuple(f'test_{shift}_2' for shift in SHIFTS),
    'test_3': tuple(f'test_{shift}_3' for shift in SHIFTS),
}


@DATASETS.register_module()
@typed
class ToyDepth(BaseDataset):
    """The places of the toy world on clear days, and at test also otherwise.

    ``train`` and ``test_clear`` are clear days; ``test_night`` is clear nights, ``test_fog`` foggy
    days, ``test_corruptions`` clear days under the fifteen common corruptions; ``test`` is these
    four in turn; ``test_2``, ``test_3`` and their parts are the same with other scenes, each
    read once for a published table. ``val`` is clear days, clear nights and foggy days in turn.
    ``guidance`` is unlabelled pictures of nights and of foggy days. No two splits share a scene.

    Depth maps are 16-bit PNGs in millimetres, 0 where unknown: the sky, and 60 m and more. To load
    them: ``dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3)``.

    Args:
        split: One of ``depth_splits.DEPTH_SIZES``, or 'test', 'test_2' or 'test_3'.
        size: Number of records; None for the split's own (see ``depth_splits.DEPTH_SIZES``). Record
            ``i`` is the same at every size.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ModuleNotFoundError: If the split needs a package that is not installed.
        ValueError: If the split is unknown or the size is not positive.
    """

    METAINFO = {
        'groups': tuple(SHIFTS),
        'world_version': WORLD_VERSION,
    }

    def __init__(self, split: str = 'train', size: int | None = None, **kwargs: Any) -> None:
        known = (*DEPTH_SIZES, *IN_TURN)
        if split not in known:
            raise ValueError(f'split={split!r} is unknown; use one of {known}')
        own = sum(DEPTH_SIZES[name] for name in IN_TURN.get(split, (split,)))
        if size is not None and size < 1:
            raise ValueError(f'size={size} must be positive, or None for {own} records')
        corrupted = any('corruptions' in name for name in IN_TURN.get(split, (split,)))
        if corrupted and importlib.util.find_spec('imagecorruptions') is None:
            raise ModuleNotFoundError(
                f'split={split!r} has corrupted pictures, which need the package '
                'imagecorruptions-imaug: pip install mmgap[corruptions]'
            )
        self.split = split
        self.size = own if size is None else size
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Lists the records; those of the guidance split hold a picture and nothing else."""
        infos = []
        for number in range(self.size):
            splits = IN_TURN.get(self.split, (self.split,))
            split, index = splits[number % len(splits)], number // len(splits)
            info: dict[str, Any] = {'img_path': ToyDepthBackend.image_path(split, index)}
            if split not in DEPTH_UNLABELLED:
                info.update(
                    depth_map_path=ToyDepthBackend.truth_path(split, index),
                    group=list(SHIFTS).index(shift_of(split, index)),
                    seg_fields=[],
                )
            infos.append(info)
        return infos

    def _join_prefix(self) -> None:
        """Paths are complete already, and there is no annotation file."""
