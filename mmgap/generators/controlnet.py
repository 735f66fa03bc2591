# SPDX-License-Identifier: Apache-2.0
"""ControlNet: an image for a depth map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmgap.generators.condition import Condition
from mmgap.generators.depth import DepthSourceSet
from mmgap.generators.diffusion import DiffusionGenerator, load_pipeline
from mmgap.registry import TASK_UTILS
from mmgap.weights import resolve


@TASK_UTILS.register_module()
class ControlNetGenerator(DiffusionGenerator):
    """Any diffusers ControlNet pipeline of Stable Diffusion, differentiable in its prompt.

    At ``strength`` 1 the image is drawn from pure noise (``StableDiffusionControlNetPipeline``),
    below from the source (``StableDiffusionControlNetImg2ImgPipeline``), as in SDEdit.

    Args:
        model: Folder or hub id of a Stable Diffusion, or ``mmgap://NAME`` for packaged weights.
        controlnet: Folder or hub id of its ControlNet, or ``mmgap://NAME``.
        show: Config of what turns metres into the ControlNet's image.
        conditioning_scale: Factor of what the ControlNet says, at least 0.
        strength: In (0, 1]; below 1 the source shines through.
        eta: DDIM's noise, 0 to 1.
        dtype: Dtype of the weights: ``'float32'``, ``'bfloat16'``, ``'float16'``, ``'float64'``.
        **kwargs: As for :class:`~mmgap.generators.diffusion.DiffusionGenerator`: ``size``,
            ``guidance_scale``, ``negative_prompt``, ``scheduler``, ``gradient``, ``autocast``,
            ``device``.

    Raises:
        FileNotFoundError: If ``model`` or ``controlnet`` cannot be found.
        ValueError: If one of them is something else, they do not belong together, or a setting is
            out of range.
    """

    denoisers: ClassVar[tuple[str, ...]] = ('unet', 'controlnet')

    def __init__(
        self,
        model: str,
        controlnet: str,
        show: Mapping[str, Any] | None = None,
        conditioning_scale: float = 1.0,
        strength: float = 1.0,
        eta: float = 0.0,
        dtype: str = 'float32',
        **kwargs: Any,
    ) -> None:
        from diffusers import (
            StableDiffusionControlNetImg2ImgPipeline,
            StableDiffusionControlNetPipeline,
        )

        self.check_settings(strength, eta)
        if conditioning_scale < 0:
            raise ValueError(f'conditioning_scale must not be negative, got {conditioning_scale}')
        settings = dict(controlnet=load_controlnet(controlnet, getattr(torch, dtype)))
        noise, source = StableDiffusionControlNetPipeline, StableDiffusionControlNetImg2ImgPipeline
        pipeline = load_pipeline(
            (noise if strength == 1 else source).from_pretrained,
            model,
            'a Stable Diffusion that takes a ControlNet',
            dtype=getattr(torch, dtype),
            **settings,
        )
        check_fit(pipeline, model, controlnet)
        super().__init__(pipeline, model, strength=strength, eta=eta, **kwargs)
        self.conditioning_scale = conditioning_scale
        self._show_cfg = dict(show or dict(type='mmgap.InverseDepth'))
        self.show = TASK_UTILS.build(dict(self._show_cfg))

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
        control = self.control_image(condition.depth)
        scale = dict(controlnet_conditioning_scale=self.conditioning_scale)
        if self.strength == 1:
            return dict(scale, image=control)
        source = condition.images.to(torch.float32) / 255
        return dict(scale, image=source, control_image=control, strength=self.strength)

    def control_image(self, depth: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1], what the ControlNet sees of ``(B, 1, H, W)`` metres."""
        return self.show(depth)

    def about(self) -> dict[str, Any]:
        """What decides an image, as plain data."""
        own = dict(conditioning_scale=self.conditioning_scale, show=self._show_cfg)
        return dict(super().about(), **own)


def load_controlnet(controlnet: str, dtype: torch.dtype) -> Any:
    """Load a ControlNet of diffusers.

    Raises:
        FileNotFoundError: If it is neither a complete folder nor a hub id that can be loaded.
        ValueError: If what is there is no ControlNet.
    """
    from diffusers import ControlNetModel

    try:
        return ControlNetModel.from_pretrained(resolve(controlnet), dtype=dtype)
    except OSError as error:
        raise FileNotFoundError(
            f'controlnet={controlnet!r} is neither a complete diffusers folder nor a hub id that '
            f'can be loaded: {error}'
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'controlnet={controlnet!r} is no ControlNet: {error}') from error


def check_fit(pipeline: Any, model: str, controlnet: str) -> None:
    """Whether a ControlNet was made for this Stable Diffusion.

    Raises:
        ValueError: If the widths of text embedding or features differ.
    """
    ours, theirs = pipeline.unet.config, pipeline.controlnet.config
    for name in ('cross_attention_dim', 'in_channels', 'block_out_channels'):
        mine, its = getattr(ours, name), getattr(theirs, name)
        mine, its = (list(v) if isinstance(v, (list, tuple)) else v for v in (mine, its))
        if mine != its:
            raise ValueError(
                f'controlnet={controlnet!r} was made for another base model than {model!r}: its '
                f'{name} is {its}, the UNet has {mine}'
            )
