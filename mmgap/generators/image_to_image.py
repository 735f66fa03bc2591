# SPDX-License-Identifier: Apache-2.0
"""Image to image: the whole picture is drawn anew from a noisy copy of the source (SDEdit)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from mmgap.generators.base import DiffusionGenerator
from mmgap.generators.loading import load_pipeline
from mmgap.generators.posterior_cache import PosteriorCache
from mmgap.registry import TASK_UTILS
from mmgap.sources import Condition, SourceSet


@TASK_UTILS.register_module()
class ImageToImageGenerator(DiffusionGenerator):
    """Any diffusers image-to-image pipeline, differentiable in its prompt.

    No mask is needed and nothing is kept, so a label holds only as far as ``strength`` lets the
    source through: :attr:`critic` is on by default (SDEdit, arXiv 2108.01073).

    Args:
        model: Folder or hub id of a diffusers model that has an image-to-image pipeline, or
            ``mmgap://NAME`` for packaged weights, or a single ``.safetensors`` file of the original
            layout.
        strength: Share of the noise that is added to the source, in (0, 1]; at 1 nothing is left of
            it but what the prompt says.
        eta: DDIM's noise, 0 to 1.
        dtype: Dtype of the weights: ``'float32'``, ``'bfloat16'``, ``'float16'``, ``'float64'``.
        variant: Which weights of the model to take: ``'fp16'`` where there are no others.
        config: For a single file, a diffusers model of its kind; its configs and tokenizers hold.
            By default diffusers guesses it and fetches these from the hub.
        cache_size: Number of VAE posteriors kept, one for each source; by default as many as 512
            MiB hold, on the generator's device.
        **kwargs: As for :class:`~mmgap.generators.base.DiffusionGenerator`: ``size``,
            ``guidance_scale``, ``negative_prompt``, ``scheduler``, ``lora``, ``gradient``,
            ``autocast``, ``compile``, ``device``.

    Raises:
        FileNotFoundError: If ``model`` cannot be found.
        ValueError: If ``model`` is not a diffusers model with an image-to-image pipeline, or a
            setting is out of range.
    """

    critic: ClassVar[dict[str, Any] | None] = dict(
        type='mmgap.ClipCritic',
        clip=dict(model='ViT-B-32', pretrained='laion2b_s34b_b79k'),
        margin=None,
        threshold=0.5,
    )

    def __init__(
        self,
        model: str,
        strength: float = 0.6,
        eta: float = 0.0,
        dtype: str = 'float32',
        variant: str | None = None,
        config: str | None = None,
        cache_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        weights = self.check_settings(strength, eta, dtype, **kwargs)
        pipeline = load_pipeline('Img2Img', model, weights, variant, config)
        channels = pipeline.unet.config.in_channels
        if channels != pipeline.unet.config.out_channels:
            raise ValueError(
                f'model={model!r} has a UNet with {channels} input channels, made for inpainting; '
                'take mmgap.InpaintingGenerator or another model'
            )
        super().__init__(pipeline, model, strength=strength, eta=eta, **kwargs)
        self._posteriors = PosteriorCache(self.pipeline.vae, size=cache_size)

    def sources(self, dataset: Any) -> SourceSet:
        """The dataset's images, with their masks where they have some."""
        return SourceSet(dataset, self.size, masked=False)

    def arguments(self, condition: Condition) -> dict[str, Any]:
        """The source."""
        return dict(image=condition.images.to(torch.float32) / 255, strength=self.strength)
