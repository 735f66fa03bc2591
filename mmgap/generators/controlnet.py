# SPDX-License-Identifier: Apache-2.0
"""ControlNet: an image for a depth map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmgap.generators.base import DiffusionGenerator
from mmgap.generators.loading import load_controlnet, load_pipeline
from mmgap.generators.posterior_cache import PosteriorCache
from mmgap.registry import TASK_UTILS
from mmgap.sources import Condition, DepthSourceSet


@TASK_UTILS.register_module()
class ControlNetGenerator(DiffusionGenerator):
    """Any diffusers ControlNet pipeline of Stable Diffusion, differentiable in its prompt.

    At ``strength`` 1 the image is drawn from pure noise (``StableDiffusionControlNetPipeline`` or
    that of XL), below from the source (``StableDiffusionControlNetImg2ImgPipeline``), as in SDEdit.

    Args:
        model: Folder or hub id of a Stable Diffusion, ``mmgap://NAME`` for packaged weights, or a
            single ``.safetensors`` file of the original layout.
        controlnet: The same of its ControlNet, or ``dict(path=…, variant=…, config=…)``.
        condition_image: Config of what turns metres into the image that the ControlNet was trained
            on.
        conditioning_scale: Factor of what the ControlNet says, at least 0.
        strength: In (0, 1]; below 1 the source shines through.
        eta: DDIM's noise, 0 to 1.
        dtype: Dtype of the weights: ``'float32'``, ``'bfloat16'``, ``'float16'``, ``'float64'``.
        variant: Which weights of the model to take: ``'fp16'`` where there are no others.
        config: For a model in a single file, a diffusers model of its kind; its configs and
            tokenizers hold. By default diffusers guesses it and fetches these from the hub.
        **kwargs: As for :class:`~mmgap.generators.base.DiffusionGenerator`: ``size``,
            ``guidance_scale``, ``negative_prompt``, ``scheduler``, ``lora``, ``gradient``,
            ``autocast``, ``compile``, ``device``.

    Raises:
        FileNotFoundError: If ``model`` or ``controlnet`` cannot be found.
        ValueError: If one of them is something else, they do not belong together, or a setting is
            out of range.
    """

    denoisers: ClassVar[tuple[str, ...]] = ('unet', 'controlnet')

    def __init__(
        self,
        model: str,
        controlnet: str | Mapping[str, Any],
        condition_image: Mapping[str, Any] | None = None,
        conditioning_scale: float = 1.0,
        strength: float = 1.0,
        eta: float = 0.0,
        dtype: str = 'float32',
        variant: str | None = None,
        config: str | None = None,
        **kwargs: Any,
    ) -> None:
        weights = self.check_settings(strength, eta, dtype, **kwargs)
        if conditioning_scale < 0:
            raise ValueError(f'conditioning_scale must not be negative, got {conditioning_scale}')
        task = 'ControlNet' if strength == 1 else 'ControlNetImg2Img'
        network = load_controlnet(controlnet, weights)
        pipeline = load_pipeline(task, model, weights, variant, config, controlnet=network)
        check_fit(pipeline, model, controlnet)
        super().__init__(pipeline, model, strength=strength, eta=eta, **kwargs)
        if strength < 1:  # it begins at the source
            self._posteriors = PosteriorCache(self.pipeline.vae)
        self.conditioning_scale = conditioning_scale
        self._image_cfg = dict(condition_image or dict(type='mmgap.InverseDepth'))
        self.condition_image = TASK_UTILS.build(dict(self._image_cfg))

    def sources(self, dataset: Any) -> DepthSourceSet:
        """The dataset's images with their depth maps."""
        return DepthSourceSet(dataset, self.size)

    def arguments(self, condition: Condition) -> dict[str, Any]:
        """The depth as the ControlNet knows it and, below strength 1, the source.

        Raises:
            ValueError: If the condition has no depth.
        """
        if condition.depth is None:
            raise ValueError('a ControlNetGenerator needs conditions with depth, this has none')
        control = self.condition_image(condition.depth)
        scale = dict(controlnet_conditioning_scale=self.conditioning_scale)
        if self.strength == 1:
            return dict(scale, image=control)
        source = condition.images.to(torch.float32) / 255
        return dict(scale, image=source, control_image=control, strength=self.strength)

    def settings(self) -> dict[str, Any]:
        """What decides an image, as plain data."""
        own = dict(conditioning_scale=self.conditioning_scale, condition_image=self._image_cfg)
        return dict(super().settings(), **own)


def check_fit(pipeline: Any, model: str, controlnet: str | Mapping[str, Any]) -> None:
    """Whether a ControlNet was made for this Stable Diffusion.

    Raises:
        ValueError: If the widths of text embedding or features differ, or what else they are told.
    """
    ours, theirs = pipeline.unet.config, pipeline.controlnet.config
    names = ('cross_attention_dim', 'in_channels', 'block_out_channels', 'addition_embed_type')
    for name in names:
        mine, its = getattr(ours, name), getattr(theirs, name)
        mine, its = (list(v) if isinstance(v, (list, tuple)) else v for v in (mine, its))
        if mine != its:
            raise ValueError(
                f'controlnet={controlnet!r} was made for another base model than {model!r}: its '
                f'{name} is {its}, the UNet has {mine}'
            )


@TASK_UTILS.register_module()
class InverseDepth:
    """Nearest white, farthest black: what ControlNets for Stable Diffusion were trained on.

    The inverse depth of each map is stretched over [0, 1]. Unknown pixels are black.
    """

    def __call__(self, depth: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] of ``(B, 1, H, W)`` metres, 0 where unknown."""
        known = depth > 0
        return _stretched(1 / torch.where(known, depth, 1.0), known)


@TASK_UTILS.register_module()
class LinearDepth:
    """Nearest white, farthest black, linear in metres.

    Minus the depth of each map is stretched over [0, 1]. Unknown pixels are black.
    """

    def __call__(self, depth: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] of ``(B, 1, H, W)`` metres, 0 where unknown."""
        return _stretched(-depth, depth > 0)


def _stretched(values: Tensor, known: Tensor) -> Tensor:
    """The known values of each map stretched over [0, 1], as three equal channels; else 0."""
    low = torch.where(known, values, torch.inf).flatten(1).amin(dim=1)
    high = torch.where(known, values, -torch.inf).flatten(1).amax(dim=1)
    low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
    shown = (values - low) / (high - low).clamp(min=1e-9)
    return torch.where(known, shown, 0.0).expand(-1, 3, -1, -1)
