# SPDX-License-Identifier: Apache-2.0
"""Depth maps with a mask, or a value, for what is not known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import get as read_bytes

from mmgap.images import read_mask
from mmgap.registry import TRANSFORMS
from mmgap.typed import typed


@TRANSFORMS.register_module()
@typed
class LoadDepth(BaseTransform):
    """Like MMSegmentation's ``LoadDepthAnnotation``, for depth that is not all known.

    Reads ``depth_map_path`` and, where the data info has it, ``depth_mask_path``: an image, bright
    where depth is known, see :func:`~mmgap.images.read_mask`. Adds ``gt_depth_map``, ``(H, W)``
    float32 in metres, 0 where unknown.

    Args:
        depth_rescale_factor: Metres that a 1 in the file stands for.
        unknown: Value in the file that means unknown, beside 0.

    Raises:
        ValueError: If the factor is not positive, a file is no image of one channel, or a mask may
            mean several things or has another size than its depth map; names the file.
    """

    def __init__(self, depth_rescale_factor: float = 1e-3, unknown: int | None = None) -> None:
        if not depth_rescale_factor > 0:
            raise ValueError(f'depth_rescale_factor must be positive, got {depth_rescale_factor}')
        self.depth_rescale_factor = depth_rescale_factor
        self.unknown = unknown

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load depth and mask."""
        stored = self._read(results['depth_map_path'])
        depth = stored.astype(np.float32) * np.float32(self.depth_rescale_factor)
        if self.unknown is not None:
            depth[stored == self.unknown] = 0
        mask_path = results.get('depth_mask_path')
        if mask_path:
            mask = read_mask(mask_path)
            if mask.shape != depth.shape:
                raise ValueError(
                    f'depth mask {mask_path} is {mask.shape[1]}x{mask.shape[0]}, its depth map '
                    f'{results["depth_map_path"]} is {depth.shape[1]}x{depth.shape[0]}'
                )
            depth[~mask] = 0
        results['gt_depth_map'] = depth
        results.setdefault('seg_fields', []).append('gt_depth_map')
        results['depth_rescale_factor'] = self.depth_rescale_factor
        return results

    @staticmethod
    def _read(path: str) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.ndim != 2:
            raise ValueError(f'{path} is no image of one channel')
        return pixels

    def __repr__(self) -> str:
        return (
            f'LoadDepth(depth_rescale_factor={self.depth_rescale_factor}, unknown={self.unknown})'
        )
