# SPDX-License-Identifier: Apache-2.0
"""A frozen backbone that sees each image once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmgap.files import fingerprint, weights_fingerprint
from mmgap.registry import MODELS
from mmgap.typed import typed

# What frozen networks have said of images, by network and precision: models that come one after
# another in a process, as the cells of a benchmark do, share it.
_MEMORIES: dict[str, OrderedDict[bytes, Tensor]] = {}


@MODELS.register_module()
@typed
class FrozenFeatures(BaseModule):
    """Backbone and pooling of a classifier whose head alone is trained.

    On a CPU each image goes through once, in whatever epoch, split or model of the process it is
    met again: the features are remembered by the pixels. On a GPU to copy and hash the pixels takes
    longer than the network, so nothing is remembered there; nor where a gradient is asked for.

    Args:
        backbone: Config of any backbone of a toolbox, with an ``init_cfg`` of its own.
        neck: Config of the pooling, of maps; the classifier then has no neck.
        size: Images to remember; the longest unused are forgotten.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any] | None = None,
        size: int = 20_000,
    ) -> None:
        super().__init__()
        neck = neck or dict(type='mmpretrain.GlobalAveragePooling')
        self._kind = fingerprint([backbone, neck])
        self.backbone: nn.Module = ROOT_MODELS.build(backbone)
        self.neck: nn.Module = ROOT_MODELS.build(neck)
        self.size = size
        self._state: Any = None
        self._weights = ''
        self.requires_grad_(False).train(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Eval mode always: statistics of normalisation stay what they are."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """``(B, 3, H, W)`` normalised images to ``(B, C)`` features."""
        if images.device.type != 'cpu' or (torch.is_grad_enabled() and images.requires_grad):
            return (self._features(images),)
        memory = self._memory()
        keys = [_name(image) for image in images]
        new = {key: i for i, key in enumerate(keys) if key not in memory}  # twins are met once
        if new:
            with torch.no_grad():
                features = self._features(images[list(new.values())])
            memory.update(zip(new, features, strict=True))
        found = torch.stack([memory[key] for key in keys])
        for key in keys:
            memory.move_to_end(key)
        while len(memory) > self.size:
            memory.popitem(last=False)
        return (found,)

    def _features(self, images: Tensor) -> Tensor:
        # Faster on CPUs and on tensor cores.
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))[-1]
        return features if features.ndim == 2 else self.neck((features,))[-1]

    def _memory(self) -> OrderedDict[bytes, Tensor]:
        """The memory of these weights in this precision."""
        tensors = [*self.parameters(), *self.buffers()]
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if state != self._state:  # loaded or moved since
            self._state, self._weights = state, weights_fingerprint(self)
        precision = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
        return _MEMORIES.setdefault(f'{self._kind} {self._weights} {precision}', OrderedDict())


def _name(image: Tensor) -> bytes:
    pixels = image.detach().float().contiguous().numpy()
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()
