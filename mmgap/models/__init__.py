# SPDX-License-Identifier: Apache-2.0
"""What the toolboxes lack: depth heads and losses, and backbones whose weights come as packages.

Configs that use it say so: ``custom_imports = dict(imports=['mmgap', 'mmgap.models'])``. What is
for depth needs MMSegmentation, and is there where that is installed; the full mmcv is not needed.
"""

import importlib.util

from mmgap.models.efficientnet_lite import EfficientNetLite
from mmgap.models.frozen_features import FrozenFeatures

__all__ = ['EfficientNetLite', 'FrozenFeatures']

if importlib.util.find_spec('mmseg') is not None:
    from mmgap.compat import allow_mmcv_without_ops

    allow_mmcv_without_ops()  # before anything of MMSegmentation is imported

    from mmgap.models.depth_heads import ConvDepthHead, DPTDepthHead
    from mmgap.models.depth_losses import (
        MaskedL1Loss,
        RobustSiLogLoss,
        ScaleShiftInvariantLoss,
    )

    __all__ += [
        'ConvDepthHead',
        'DPTDepthHead',
        'MaskedL1Loss',
        'RobustSiLogLoss',
        'ScaleShiftInvariantLoss',
    ]
