# SPDX-License-Identifier: Apache-2.0
"""Inpainting: the foreground stays, a diffusion model draws everything around it."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mmgap.compat import differentiable_call
from mmgap.files import fingerprint, weights_fingerprint
from mmgap.generators.condition import Condition
from mmgap.generators.denoising import denoising_loss
from mmgap.generators.gradient import GradientPolicy
from mmgap.prompts import PromptEncoder
from mmgap.registry import TASK_UTILS
from mmgap.weights import resolve


@TASK_UTILS.register_module()
class InpaintingGenerator:
    """Any diffusers inpainting pipeline, differentiable in its prompt.

    The stock pipeline itself runs, so a plain ``StableDiffusionInpaintPipeline`` given the same
    source, mask, prompt and seeds draws the same image. What is added: gradient to the prompt,
    caching of what does not change between steps, and the kept pixels pasted back.

    Args:
        model: Folder or hub id of a diffusers model that has an inpainting pipeline (UNets with 4
            or 9 input channels), or ``mmgap://NAME`` for packaged weights.
        size: Height and width in pixels, an int for both. By default the model's own.
        guidance_scale: Weight of classifier-free guidance; 1 or less switches it off.
        strength: In (0, 1]; below 1 the source's background shines through.
        eta: DDIM's noise, 0 to 1.
        negative_prompt: What classifier-free guidance leads away from.
        scheduler: Config of another scheduler, e.g. ``dict(type='DDIMScheduler')``; what it does
            not name is taken from the model's own.
        gradient: Arguments of :class:`~mmgap.generators.gradient.GradientPolicy`.
        dtype: Dtype of the weights: ``'float32'``, ``'bfloat16'``, ``'float16'``, ``'float64'``.
        autocast: Dtype of matrix products and convolutions, e.g. ``'bfloat16'``: 1.5 to 2 times
            faster on CPUs that have it. The latents stay in ``dtype``.
        device: Where it runs; by default MMEngine's device.
        cache_size: Number of VAE posteriors kept. Each source takes two.

    Raises:
        FileNotFoundError: If ``model`` cannot be found.
        ValueError: If ``model`` is not a diffusers model with an inpainting pipeline, or a setting
            is out of range.
    """

    def __init__(
        self,
        model: str,
        size: int | tuple[int, int] | None = None,
        guidance_scale: float = 7.0,
        strength: float = 1.0,
        eta: float = 0.0,
        negative_prompt: str = '',
        scheduler: dict[str, Any] | None = None,
        gradient: dict[str, Any] | None = None,
        dtype: str = 'float32',
        autocast: str | None = None,
        device: str | None = None,
        cache_size: int = 8192,
    ) -> None:
        from mmengine.device import get_device

        if not 0 < strength <= 1:
            raise ValueError(f'strength must be in (0, 1], got {strength}')
        if not 0 <= eta <= 1:
            raise ValueError(f'eta must be in [0, 1], got {eta}')
        self.guidance_scale = guidance_scale
        self.strength = strength
        self.eta = eta
        self.negative_prompt = negative_prompt
        self.gradient = GradientPolicy(**(gradient or {}))
        self.device = torch.device(device or get_device())
        self.autocast = getattr(torch, autocast) if autocast else None
        self.pipeline = load_inpainting_pipeline(model, getattr(torch, dtype))
        pipe = self.pipeline.to(self.device)
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipe.scheduler = _build_scheduler(pipe.scheduler, scheduler)
        for network in (pipe.text_encoder, pipe.unet, pipe.vae):
            network.requires_grad_(False).eval()
        if dtype != 'float64':
            for network in (pipe.unet, pipe.vae):
                network.to(memory_format=torch.channels_last)
        own_size = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self.size = (size, size) if isinstance(size, int) else tuple(size or (own_size, own_size))
        self.prompts = PromptEncoder(pipe.tokenizer, pipe.text_encoder)
        self._name = model
        self._negative: Tensor | None = None
        self._posteriors = _PosteriorCache(pipe.vae, cache_size)

    def __call__(
        self,
        condition: Condition,
        prompt_embeds: Tensor,
        seeds: Sequence[int],
        num_inference_steps: int,
    ) -> Tensor:
        """Draw images with the condition's foreground pasted back.

        Gradient reaches ``prompt_embeds`` when gradients are enabled, as the policy says.

        Args:
            condition: ``B`` sources of the generator's size.
            prompt_embeds: ``(B, length, width)`` from :class:`~mmgap.prompts.PromptEncoder`.
            seeds: One seed per image; an image depends on its own seed only.
            num_inference_steps: Denoising steps of the full chain; at ``strength`` below 1 only
                that share of them runs.

        Returns:
            ``(B, 3, H, W)`` RGB in [0, 1]. On the foreground it is exactly the source.
        """
        condition = condition.to(self.device)
        drawn = self.draw(condition, prompt_embeds, seeds, num_inference_steps)
        # Half precision cannot hold 256 levels: what is kept would not come back exactly.
        drawn = drawn.to(torch.promote_types(drawn.dtype, torch.float32))
        return torch.where(condition.masks, condition.images.to(drawn.dtype) / 255, drawn)

    def draw(
        self,
        condition: Condition,
        prompt_embeds: Tensor,
        seeds: Sequence[int],
        num_inference_steps: int,
    ) -> Tensor:
        """What the pipeline draws, before pasting. Arguments as in :meth:`__call__`.

        Raises:
            ValueError: If the batch sizes differ, the condition has another size than the
                generator, or no denoising step is left at this strength.
        """
        if not len(condition) == len(prompt_embeds) == len(seeds):
            raise ValueError(
                f'{len(condition)} sources, {len(prompt_embeds)} prompts and {len(seeds)} seeds '
                'were given; there must be one of each per image'
            )
        if tuple(condition.images.shape[-2:]) != self.size:
            raise ValueError(
                f'the condition is {tuple(condition.images.shape[-2:])}, the generator draws '
                f'{self.size}'
            )
        if int(num_inference_steps * self.strength) < 1:
            raise ValueError(
                f'num_inference_steps={num_inference_steps} at strength={self.strength} leaves no '
                'denoising step'
            )
        condition = condition.to(self.device)
        pipe = self.pipeline
        dtype = pipe.unet.dtype
        batch = len(condition)
        arguments = dict(
            image=condition.images.to(torch.float32) / 255,
            mask_image=(~condition.masks).to(torch.float32),
            height=self.size[0],
            width=self.size[1],
            strength=self.strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            generator=[torch.Generator().manual_seed(int(seed)) for seed in seeds],
            prompt_embeds=prompt_embeds.to(self.device, dtype),
            negative_prompt_embeds=self._negative_embeds().expand(batch, -1, -1).to(dtype),
            output_type='pt',
        )
        with self._autocast():
            if not torch.is_grad_enabled():
                return pipe(**arguments).images
            calls = self._num_calls(num_inference_steps)
            with self.gradient.applied([pipe.unet], pipe.vae.decoder, calls):
                return differentiable_call(pipe)(**arguments).images

    def denoising_loss(self, images: Tensor, prompt_embeds: Tensor, seeds: Sequence[int]) -> Tensor:
        """``(B,)``: how badly prompts explain images; see :mod:`mmgap.generators.denoising`."""
        with self._autocast():
            return denoising_loss(self.pipeline, images, prompt_embeds, seeds)

    def fingerprint(self) -> str:
        """Sixteen hex digits that name weights and settings: equal ones draw equal images."""
        pipe = self.pipeline
        return fingerprint(
            dict(
                pipeline=type(pipe).__name__,
                scheduler=[type(pipe.scheduler).__name__, dict(pipe.scheduler.config)],
                weights=[weights_fingerprint(m) for m in (pipe.text_encoder, pipe.unet, pipe.vae)],
                size=self.size,
                guidance_scale=self.guidance_scale,
                strength=self.strength,
                eta=self.eta,
                negative_prompt=self.negative_prompt,
                dtypes=[str(pipe.unet.dtype), str(self.autocast)],
            )
        )

    def __repr__(self) -> str:
        return f'InpaintingGenerator(model={self._name!r}, size={self.size})'

    def _autocast(self) -> Any:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def _num_calls(self, num_inference_steps: int) -> int:
        self.pipeline.scheduler.set_timesteps(num_inference_steps, device=self.device)
        timesteps, _ = self.pipeline.get_timesteps(num_inference_steps, self.strength, self.device)
        return len(timesteps)

    @torch.no_grad()
    def _negative_embeds(self) -> Tensor:
        if self._negative is None:
            self._negative = self.prompts.encode_text([self.negative_prompt])
        return self._negative


class _PosteriorCache:
    """Remembers what the VAE's encoder says of an image.

    The pipeline encodes source and masked source at every call. The posterior is remembered, not a
    draw from it: the draws stay those of the stock pipeline.
    """

    def __init__(self, vae: Any, size: int) -> None:
        self._encode = vae.encode
        self._size = size
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()
        vae.encode = self.encode

    def encode(self, image: Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        content = image.detach().to('cpu', torch.float32).contiguous().numpy().tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest() + str(image.dtype).encode()
        if key in self._known:
            self._known.move_to_end(key)
        else:
            with torch.no_grad():
                self._known[key] = self._encode(image).latent_dist.parameters
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        posterior = DiagonalGaussianDistribution(self._known[key])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def load_inpainting_pipeline(model: str, dtype: torch.dtype) -> Any:
    """Load a diffusers inpainting pipeline without its safety checker.

    The safety checker would break the gradient and can black images out.

    Raises:
        FileNotFoundError: If ``model`` is neither a folder nor a hub id that can be loaded.
        ValueError: If what is there is not a diffusers model, has no inpainting pipeline, or needs
            more than one text encoder.
    """
    from diffusers import AutoPipelineForInpainting

    path = resolve(model)
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, 'model_index.json')):
        raise ValueError(f'model={model!r} has no model_index.json: it is no diffusers model')
    if not os.path.isdir(path) and (os.path.isabs(path) or path.count('/') != 1):
        raise FileNotFoundError(f'model={model!r} is neither a folder nor a hub id (OWNER/NAME)')
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(
            path, dtype=dtype, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ConnectionError) as error:
        raise FileNotFoundError(
            f'model={model!r} is neither a complete diffusers folder nor a hub id that can be '
            f'loaded: {error}'
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'model={model!r} is not an inpainting pipeline: {error}') from error
    if getattr(pipeline, 'text_encoder_2', None) is not None:
        raise ValueError(
            f'model={model!r} ({type(pipeline).__name__}) has two text encoders; only pipelines '
            'with one are supported: Stable Diffusion 1.x and 2.x'
        )
    return pipeline


def _build_scheduler(current: Any, config: dict[str, Any]) -> Any:
    import diffusers

    settings = dict(config)
    name = settings.pop('type', type(current).__name__)
    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, 'set_timesteps'):
        raise ValueError(f'scheduler type {name!r} is not a scheduler of diffusers')
    return kind.from_config(current.config, **settings)
