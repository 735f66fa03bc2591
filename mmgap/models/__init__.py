# SPDX-License-Identifier: Apache-2.0
"""What the toolboxes lack for depth. Needs MMSegmentation; the full mmcv is not needed.

Configs that use it say so: ``custom_imports = dict(imports=['mmgap', 'mmgap.models'])``.
"""

from mmgap.compat import allow_mmcv_without_ops

allow_mmcv_without_ops()  # before anything of MMSegmentation is imported

from mmgap.models.depth_heads import ConvDepthHead, DPTDepthHead  # noqa: E402
from mmgap.models.depth_losses import (  # noqa: E402
    MaskedL1Loss,
    RobustSiLogLoss,
    ScaleShiftInvariantLoss,
)

__all__ = [
    'ConvDepthHead',
    'DPTDepthHead',
    'MaskedL1Loss',
    'RobustSiLogLoss',
    'ScaleShiftInvariantLoss',
]
