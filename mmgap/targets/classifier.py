# SPDX-License-Identifier: Apache-2.0
"""Classifiers as targets: differentiable, from images in [0, 1] to a loss for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn

from mmgap.files import plain, weights_fingerprint
from mmgap.targets.pipelines import read_pipeline


class TargetOutput(Protocol):
    """What any target says of a batch.

    Attributes:
        loss: ``(B,)``, the loss of each sample, higher where the model is more wrong.
    """

    loss: Tensor

    def hits(self, truth: Tensor, /) -> Tensor:
        """``(B,)``: how far the model is right about each sample, in [0, 1]."""

    def agreement(self, truth: Tensor, /) -> Tensor:
        """``(B,)``: how much it believes of the truth of each sample, in [0, 1]."""


@dataclass
class ClassOutput:
    """What a classifier says of a batch.

    Attributes:
        logits: ``(B, classes)``.
        loss: ``(B,)``, the loss of each sample, higher where the model is more wrong.
    """

    logits: Tensor
    loss: Tensor

    @property
    def predictions(self) -> Tensor:
        """``(B,)``: the class named for each sample."""
        return self.logits.argmax(dim=1)

    def hits(self, labels: Tensor) -> Tensor:
        """``(B,)``: 1 where the class is the true one, else 0."""
        return (self.predictions == labels.to(self.logits.device)).float()

    def agreement(self, labels: Tensor) -> Tensor:
        """``(B,)``: probability of the true class."""
        labels = labels.to(self.logits.device)
        return self.logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]


class TargetModel:
    """Any toolbox classifier, seen from the image: images in [0, 1] in, loss per sample out.

    The images take the way of the test pipeline: resized to its crop, scaled to 255, in its channel
    order, through the model's own ``data_preprocessor`` without train-time batch augmentation.

    Use it inside :meth:`frozen`, which puts the model into eval mode and puts mode and flags back
    afterwards. No gradient ever stays on the model: take it with ``torch.autograd.grad``.

    Args:
        model: A model of MMPretrain, also wrapped for distributed training.
        input_size: ``(height, width)`` that the model is tested at; None leaves images as they are.
        channel_order: ``'bgr'`` or ``'rgb'``, what the pipeline hands to the data preprocessor.

    Raises:
        ValueError: If ``channel_order`` is something else.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: tuple[int, int] | None = None,
        channel_order: str = 'bgr',
    ) -> None:
        if channel_order not in ('bgr', 'rgb'):
            raise ValueError(f"channel_order must be 'bgr' or 'rgb', got {channel_order!r}")
        self.model: BaseModel = model.module if is_model_wrapper(model) else model
        self.input_size = input_size
        self.channel_order = channel_order

    @classmethod
    def from_pipeline(
        cls, model: nn.Module, pipeline: Sequence[Mapping[str, Any]], **given: Any
    ) -> TargetModel:
        """Read size and channel order from the configs of a test pipeline.

        Args:
            model: A model of MMPretrain.
            pipeline: Configs of its transforms, see :func:`mmgap.targets.pipelines.read_pipeline`.
            **given: Arguments that hold instead of what it says; with both it is not read.

        Raises:
            ValueError: If the pipeline cannot be followed.
        """
        if not {'input_size', 'channel_order'} <= set(given):
            size, order = read_pipeline(pipeline, sized='input_size' in given)
            given = dict(input_size=size, channel_order=order) | given
        return cls(model, **given)

    def identity(self) -> list[Any]:
        """What decides what it says of an image, as plain data."""
        weights = weights_fingerprint(self.model)
        return plain([weights, self._preprocessing(), self.input_size, self.channel_order])

    def _preprocessing(self) -> dict[str, Any]:
        """Settings of the data preprocessor, whose mean and std are no weights."""
        part = self.model.data_preprocessor
        kinds = (bool, int, float, str, tuple, list)
        settings = {k: v for k, v in vars(part).items() if isinstance(v, kinds) and k != 'training'}
        buffers = {name: buffer.tolist() for name, buffer in part.named_buffers()}
        return dict(settings, **buffers, type=type(part).__name__)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Eval mode and no ``requires_grad`` while open; everything as before afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            self.model.eval()
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for module, mode in modes:
                module.training = mode

    def __call__(self, images: Tensor, labels: Tensor) -> TargetOutput:
        """Loss and prediction for each image.

        Args:
            images: ``(B, 3, H, W)`` RGB in [0, 1].
            labels: ``(B,)`` classes.

        Returns:
            Logits and loss of each sample, with gradient to ``images``.

        Raises:
            ValueError: If the model returns no logits for these images.
        """
        inputs, reference = self.inputs(images), next(self.model.parameters())
        with torch.autocast(reference.device.type, enabled=False):
            data = self.model.data_preprocessor(dict(inputs=inputs), False)
            logits = self.model(data['inputs'].to(reference.dtype), mode='tensor')
        if isinstance(logits, (tuple, list)) and len({tuple(part.shape) for part in logits}) == 1:
            logits = sum(logits)  # of ConformerHead, which alone has two, the prediction
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f'{type(self.model).__name__} in tensor mode returned no (B, classes) logits; '
                'the feedback needs a classifier with a head'
            )
        labels = labels.to(logits.device)
        return ClassOutput(logits, self._loss(logits, labels))

    def inputs(self, images: Tensor) -> Tensor:
        """Images as the test pipeline hands them to the data preprocessor, on its device."""
        reference = next(self.model.parameters())
        inputs = images.to(reference.device, torch.promote_types(images.dtype, torch.float32))
        if self.input_size is not None and tuple(inputs.shape[-2:]) != tuple(self.input_size):
            inputs = F.interpolate(
                inputs, self.input_size, mode='bilinear', align_corners=False, antialias=True
            )
        inputs = inputs * 255
        return inputs.flip(1) if self.channel_order == 'bgr' else inputs

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The head's own cross-entropy with its weights; plain for heads with another loss."""
        module: Any = getattr(getattr(self.model, 'head', None), 'loss_module', None)
        plain = type(module).__name__ == 'CrossEntropyLoss' and not (
            getattr(module, 'use_sigmoid', True) or getattr(module, 'use_soft', True)
        )
        if plain:
            return module(logits, labels, reduction_override='none')
        return F.cross_entropy(logits, labels, reduction='none')
