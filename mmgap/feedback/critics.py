# SPDX-License-Identifier: Apache-2.0
"""Critics: is an image still what its label says? Asked of anyone but the target.

The target's own confidence tells nothing of images that were made to fool it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

from mmgap.configs import refuse_old_names, renamed
from mmgap.feedback.base import prepared
from mmgap.feedback.clip_model import ClipModel
from mmgap.files import fingerprint
from mmgap.registry import TASK_UTILS
from mmgap.targets import TargetModel, build_target, load_model
from mmgap.typed import checked


class Critic:
    """What all critics share.

    Args:
        threshold: Images with less agreement are dropped: they stay in the pool, marked, and are
            not trained on. None drops nothing and only records.

    Attributes:
        label_type: ``'classes'`` or ``'depth'``, what its labels are.

    Raises:
        ValueError: If the threshold is outside [0, 1].
    """

    label_type = 'classes'

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_old_names(cls, judges='label_type')

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f'{type(self).__name__} threshold must be in [0, 1], got {threshold}')
        self.threshold = threshold

    def prepare(self, classes: Sequence[str]) -> None:
        """Compute what does not change. May be called again; then it is quick."""

    def fingerprint(self) -> str:
        """Sixteen hex digits that name a prepared critic: equal ones agree with the same images."""
        raise NotImplementedError(f'{type(self).__name__} has no name')

    def keeps(self, agreement: float) -> bool:
        """Whether an image with this agreement is trained on."""
        return self.threshold is None or agreement >= self.threshold

    def __call__(self, images: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """How far an image agrees with its label.

        Args:
            images: ``(B, 3, H, W)`` RGB in [0, 1].
            masks: ``(B, 1, H, W)`` bool, the kept object, or where depth is known.
            labels: ``(B,)`` classes, or ``(B, 1, H, W)`` metres, 0 where unknown.

        Returns:
            ``(B,)`` in [0, 1].
        """
        raise NotImplementedError(f'{type(self).__name__} says nothing of an image')


@TASK_UTILS.register_module()
class ClipCritic(Critic):
    """CLIP's zero-shot probability of the class.

    Args:
        clip: Arguments of :class:`~mmgap.feedback.clip_model.ClipModel`.
        template: Sentence for a class; ``{}`` is its name.
        texts: A sentence for each class, instead of the template.
        margin: Look only at the kept object: the box around its mask, widened on each side by this
            share of its longer side. None looks at the whole image.
        threshold: As for :class:`Critic`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        clip: Mapping[str, Any],
        template: str = 'a photo of a {}',
        texts: Sequence[str] | None = None,
        margin: float | None = 0.2,
        threshold: float | None = None,
    ) -> None:
        super().__init__(threshold)
        if template.count('{}') != 1:
            raise ValueError(f"ClipCritic template must contain '{{}}' once, got {template!r}")
        if margin is not None and margin < 0:
            raise ValueError(f'ClipCritic margin must not be negative, got {margin}')
        self.clip = dict(clip)
        self.template = template
        self.texts = None if texts is None else list(texts)
        self.margin = margin
        self._model: ClipModel | None = None
        self._classes: Tensor | None = None

    @property
    def model(self) -> ClipModel:
        """The CLIP model, built when it is first needed."""
        if self._model is None:
            self._model = ClipModel(**checked(ClipModel, self.clip))
        return self._model

    def prepare(self, classes: Sequence[str]) -> None:
        """Encode the class names.

        Raises:
            ValueError: If ``texts`` are not as many as the classes.
        """
        if self._classes is not None:
            return
        texts = self.texts or [self.template.format(name) for name in classes]
        if len(texts) != len(classes):
            raise ValueError(f'ClipCritic has {len(texts)} texts for {len(classes)} classes')
        self._classes = self.model.encode_texts(texts)

    def fingerprint(self) -> str:
        """Names weights, sentences and crop."""
        texts = prepared(self._classes).double().sum(dim=1).tolist()
        return fingerprint([self.model.fingerprint(), texts, self.margin])

    @torch.no_grad()
    def __call__(self, images: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """``(B,)``: probability of the label among the classes."""
        rows = [
            self.model.encode_images(self._crop(image, mask)[None])
            for image, mask in zip(images, masks.to(images.device), strict=True)
        ]
        logits = self.model.model.logit_scale.exp() * torch.cat(rows)
        logits = logits @ prepared(self._classes).t()
        labels = labels.to(logits.device)
        return logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]

    def _crop(self, image: Tensor, mask: Tensor) -> Tensor:
        """A square around the object, cut off at the border of the image; all without one."""
        if self.margin is None or not mask.any():
            return image
        rows, columns = mask[0].any(dim=1).nonzero(), mask[0].any(dim=0).nonzero()
        (top, bottom), (left, right) = (
            (int(edge.min()), int(edge.max()) + 1) for edge in (rows, columns)
        )
        side = round(max(bottom - top, right - left) * (1 + 2 * self.margin))
        top, left = (top + bottom) // 2 - side // 2, (left + right) // 2 - side // 2
        return image[:, max(0, top) : top + side, max(0, left) : left + side]


@TASK_UTILS.register_module()
class ModelCritic(Critic):
    """A classifier that was trained independently of the target, on other data or seeds.

    Args:
        config: Config file of the classifier; its test pipeline says size and channel order.
        checkpoint: Its weights.
        threshold: As for :class:`Critic`.
        input: Arguments of :class:`~mmgap.targets.TargetModel` that hold instead of what the
            pipeline says.
        target: The old name of ``input``.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        threshold: float | None = None,
        input: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(threshold)
        old = {} if target is None else dict(target=target)
        renamed(old, type(self).__name__, target='input')
        self.config = config
        self.checkpoint = checkpoint
        self.input = old.get('input', input)
        self._target: TargetModel | None = None

    def prepare(self, classes: Sequence[str]) -> None:
        """Build the classifier.

        Raises:
            ValueError: If its classes are not as many.
            RuntimeError: If the checkpoint does not fit.
        """
        if self._target is not None:
            return
        config = Config.fromfile(self.config)
        count = config.model.get('head', {}).get('num_classes')
        if count is not None and count != len(classes):
            raise ValueError(
                f'ModelCritic config={self.config!r} has {count} classes, the data {len(classes)}'
            )
        self._target = self._load(config, 'mmpretrain')

    def _load(self, config: Config, scope: str) -> TargetModel:
        """The config's model with the checkpoint's weights."""
        # The run's own scope stays the default one.
        with DefaultScope.overwrite_default_scope(config.get('default_scope', scope)):
            model = load_model(config, self.checkpoint)
        return build_target(model.eval(), config, self.input, self.label_type)

    def fingerprint(self) -> str:
        """Names weights and input."""
        return fingerprint(prepared(self._target).identity())

    @torch.no_grad()
    def __call__(self, images: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """``(B,)``: probability of the label; of a depth map the share of pixels seen right."""
        target = prepared(self._target)
        with target.frozen():
            return target(images, labels).agreement(labels)


@TASK_UTILS.register_module()
class DepthCritic(ModelCritic):
    """A depth model that was trained independently of the target: does it see the same depth?

    Args:
        config: Config file of the depth model; its test pipeline says size and channel order.
        checkpoint: Its weights.
        threshold: As for :class:`Critic`.
        input: As for :class:`ModelCritic`.
    """

    label_type = 'depth'

    def prepare(self, classes: Sequence[str]) -> None:
        """Build the depth model.

        Raises:
            RuntimeError: If the checkpoint does not fit.
        """
        if self._target is None:
            config = Config.fromfile(self.config)
            self._target = self._load(config, 'mmseg')


@torch.no_grad()
def diversity(clip: ClipModel, images: Tensor) -> float:
    """Mean cosine distance between two different images in CLIP's space.

    Args:
        clip: The model.
        images: ``(B, 3, H, W)`` RGB in [0, 1], two at least.

    Returns:
        In [0, 2].
    """
    features = torch.cat([clip.encode_images(image[None]) for image in images])
    number = len(features)
    # The sum of all pairs' cosines is the squared length of the sum.
    cosines = features.sum(dim=0).square().sum() - number
    return float(1 - cosines / (number * (number - 1)))
