# SPDX-License-Identifier: Apache-2.0
"""Inpainting: the foreground stays, a diffusion model draws everything around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmgap.generators.base import DiffusionGenerator
from mmgap.generators.loading import load_pipeline
from mmgap.generators.posterior_cache import PosteriorCache
from mmgap.registry import TASK_UTILS
from mmgap.sources import Condition, SourceSet


@TASK_UTILS.register_module()
class InpaintingGenerator(DiffusionGenerator):
    """Any diffusers inpainting pipeline, differentiable in its prompt.

    The stock pipeline itself runs, so a plain ``StableDiffusionInpaintPipeline`` given the same
    source, mask, prompt and seeds draws the same image. What is added: gradient to the prompt,
    caching of what does not change between steps, and the kept pixels pasted back.

    Args:
        model: Folder or hub id of a diffusers model that has an inpainting pipeline (UNets with 4
            or 9 input channels), ``mmgap://NAME`` for packaged weights, or a single
            ``.safetensors`` file of the original layout.
        strength: In (0, 1]; below 1 the source's background shines through.
        eta: DDIM's noise, 0 to 1.
        dtype: Dtype of the weights: ``'float32'``, ``'bfloat16'``, ``'float16'``, ``'float64'``.
        variant: Which weights of the model to take: ``'fp16'`` where there are no others.
        config: For a single file, a diffusers model of its kind; its configs and tokenizers hold.
            By default diffusers guesses it and fetches these from the hub.
        cache_size: Number of VAE posteriors kept, one for each source, two with a UNet of 9 input
            channels; by default as many as 512 MiB hold, on the generator's device.
        **kwargs: As for :class:`~mmgap.generators.base.DiffusionGenerator`: ``size``,
            ``guidance_scale``, ``negative_prompt``, ``scheduler``, ``lora``, ``gradient``,
            ``autocast``, ``compile``, ``device``.

    Raises:
        FileNotFoundError: If ``model`` cannot be found.
        ValueError: If ``model`` is not a diffusers model with an inpainting pipeline, or a setting
            is out of range.
    """

    def __init__(
        self,
        model: str,
        strength: float = 1.0,
        eta: float = 0.0,
        dtype: str = 'float32',
        variant: str | None = None,
        config: str | None = None,
        cache_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        weights = self.check_settings(strength, eta, dtype, **kwargs)
        pipeline = load_pipeline('Inpaint', model, weights, variant, config)
        channels = pipeline.unet.config.in_channels
        if channels not in (4, 9):
            raise ValueError(
                f'model={model!r} has a UNet with {channels} input channels; inpainting needs one '
                'with 4 or 9'
            )
        super().__init__(pipeline, model, strength=strength, eta=eta, **kwargs)
        used = 1 if channels == 4 else 2
        self._posteriors = PosteriorCache(self.pipeline.vae, used, cache_size)

    def sources(self, dataset: Any) -> SourceSet:
        """The dataset's masked images."""
        return SourceSet(dataset, self.size)

    def arguments(self, condition: Condition) -> dict[str, Any]:
        """Source and mask."""
        return dict(
            image=condition.images.to(torch.float32) / 255,
            mask_image=(~condition.masks).to(torch.float32),
            strength=self.strength,
        )

    def finish(self, images: Tensor, condition: Condition) -> Tensor:
        """The condition's foreground pasted back; there the image is the source."""
        # Half precision cannot hold 256 levels: what is kept would not come back exactly.
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return torch.where(condition.masks, condition.images.to(images.dtype) / 255, images)
