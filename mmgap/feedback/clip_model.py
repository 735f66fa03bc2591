# SPDX-License-Identifier: Apache-2.0
"""CLIP's joint space, differentiable from images in [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgap.files import fingerprint, weights_fingerprint
from mmgap.weights import resolve


class ClipModel:
    """Any model of open_clip, frozen, in float32.

    Args:
        model: An open_clip name (``'ViT-B-32'``), ``'hf-hub:OWNER/NAME'``, a folder with
            ``open_clip_config.json``, or ``'mmgap://toybirds-clip'``.
        pretrained: Weights of a name: a tag (``'laion2b_s34b_b79k'``) or a file. The other kinds of
            ``model`` carry their own.
        device: Where it runs; an accelerator if there is one.

    Raises:
        FileNotFoundError: If there is no such model or file.
        ValueError: If a name comes without weights, or the weights do not fit the model.
    """

    def __init__(
        self, model: str, pretrained: str | None = None, device: str | None = None
    ) -> None:
        import open_clip
        from mmengine.device import get_device

        path = resolve(model)
        name = f'local-dir:{path}' if os.path.isdir(path) else model
        carries_weights = name.startswith(('local-dir:', 'hf-hub:'))
        if not carries_weights:
            if name not in open_clip.list_models():
                raise FileNotFoundError(
                    f'clip model={model!r} is neither a folder nor a name that open_clip knows; '
                    'open_clip.list_models() lists them'
                )
            if not pretrained:
                raise ValueError(
                    f'clip model={model!r} needs pretrained: a file, or one of '
                    f'{open_clip.list_pretrained_tags_by_model(name)}'
                )
        try:
            self.model = open_clip.create_model(
                name,
                pretrained=None if carries_weights else pretrained,
                device='cpu',
                require_pretrained=True,
            )
        except (RuntimeError, AssertionError, KeyError) as error:
            raise ValueError(
                f'pretrained={pretrained!r} cannot be found or does not fit clip model={model!r}: '
                f'{error}'
            ) from error
        self.device = torch.device(device or get_device())
        self.model.to(self.device).float().eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(name)
        settings = self.model.visual.preprocess_cfg
        size = settings['size']
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.resize_mode = settings.get('resize_mode', 'shortest')
        self.interpolation = settings.get('interpolation', 'bicubic')
        self._mean = torch.tensor(settings['mean'], device=self.device)[:, None, None]
        self._std = torch.tensor(settings['std'], device=self.device)[:, None, None]

    def encode_images(self, images: Tensor) -> Tensor:
        """Features of images, with gradient to them.

        Args:
            images: ``(B, 3, H, W)`` RGB in [0, 1]. They are resized and cropped as the model's own
                preprocessing does, antialiased.

        Returns:
            ``(B, width)``, of unit length.
        """
        images = images.to(self.device, torch.float32)
        with torch.autocast(self.device.type, enabled=False):
            inputs = (self._resize(images) - self._mean) / self._std
            return self.model.encode_image(inputs, normalize=True)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features of sentences.

        Returns:
            ``(len(texts), width)``, of unit length.

        Raises:
            ValueError: If a sentence is longer than the model takes; says where it would be cut.
        """
        for text in texts:
            self._check_length(text)
        tokens = self.tokenizer(list(texts)).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.model.encode_text(tokens, normalize=True)

    def fingerprint(self) -> str:
        """Sixteen hex digits that name weights and preprocessing."""
        parts = [weights_fingerprint(self.model), self.size, self.resize_mode, self.interpolation]
        return fingerprint([*parts, self._mean.flatten().tolist(), self._std.flatten().tolist()])

    def _resize(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if (height, width) == self.size:
            return images
        if self.resize_mode == 'squash':
            to = self.size
        else:  # 'shortest' crops what is left over, 'longest' pads it
            pick = min if self.resize_mode == 'longest' else max
            scale = pick(self.size[0] / height, self.size[1] / width)
            to = (round(height * scale), round(width * scale))
        images = F.interpolate(images, to, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = ((to[i] - self.size[i]) // 2 for i in (0, 1))
        bottom, right = self.size[0] - to[0] + top, self.size[1] - to[1] + left
        return F.pad(images, (-left, right, -top, bottom))

    def _check_length(self, text: str) -> None:
        limit = self.tokenizer.context_length - 2
        inner: Any = getattr(self.tokenizer, 'tokenizer', None)
        if inner is not None:  # a tokenizer of transformers
            ids = inner(text, add_special_tokens=False).input_ids
            decode = inner.decode
        else:
            ids, decode = self.tokenizer.encode(text), self.tokenizer.decode
        if len(ids) > limit:
            raise ValueError(
                f'{text!r} has {len(ids)} tokens, CLIP takes {limit}; it would be cut after '
                f'{decode(ids[:limit])!r}'
            )
