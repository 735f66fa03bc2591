# SPDX-License-Identifier: Apache-2.0
"""How well a generator explains an image: its denoising error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def denoising_loss(
    pipeline: Any,
    images: Tensor,
    seeds: Sequence[int],
    prompt_embeds: Tensor,
    pooled_prompt_embeds: Tensor | None = None,
) -> Tensor:
    """The diffusion model's training loss on images, one timestep and noise per seed.

    An inpainting UNet with 9 input channels is asked to draw the whole image anew.

    Args:
        pipeline: A Stable Diffusion pipeline.
        images: ``(B, 3, H, W)`` in [0, 1].
        seeds: One seed per image for posterior, noise and timestep.
        prompt_embeds: ``(B, length, width)``; gradient reaches them.
        pooled_prompt_embeds: ``(B, pooled)``, with gradient too; Stable Diffusion XL has them. It
            is also conditioned on images being whole and of their own size, as by its pipelines.

    Returns:
        ``(B,)``: mean squared error of each image.

    Raises:
        ValueError: If the scheduler predicts something unknown.
    """
    from diffusers import DDPMScheduler

    unet, vae = pipeline.unet, pipeline.vae
    # The noise of training: schedulers of sampling may scale it, or know their own steps only.
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    device, dtype = unet.device, unet.dtype
    steps = scheduler.config.num_train_timesteps
    latents, noises, times = [], [], []
    with torch.no_grad():
        for image, seed in zip(images, seeds, strict=True):
            rng = torch.Generator().manual_seed(int(seed))
            posterior = vae.encode((2 * image[None] - 1).to(device, dtype)).latent_dist
            latents.append(_draw(posterior, rng) * vae.config.scaling_factor)
            noises.append(torch.randn(latents[-1].shape, generator=rng).to(device, dtype))
            times.append(torch.randint(steps, (1,), generator=rng).to(device))
        latent, noise, time = torch.cat(latents), torch.cat(noises), torch.cat(times)
        inputs = scheduler.add_noise(latent, noise, time)
        if unet.config.in_channels != latent.shape[1]:
            grey = vae.encode(torch.zeros_like(images[:1]).to(device, dtype)).latent_dist.mode()
            grey = (grey * vae.config.scaling_factor).expand_as(latent)
            inputs = torch.cat([inputs, torch.ones_like(latent[:, :1]), grey], dim=1)
    added = None
    if pooled_prompt_embeds is not None:
        size = list(images.shape[-2:])
        ids = torch.tensor([*size, 0, 0, *size], device=device, dtype=dtype)
        ids = ids.expand(len(images), -1)
        added = dict(text_embeds=pooled_prompt_embeds.to(device, dtype), time_ids=ids)
    hidden = prompt_embeds.to(device, dtype)
    predicted = unet(inputs, time, encoder_hidden_states=hidden, added_cond_kwargs=added).sample
    kind = scheduler.config.prediction_type
    if kind == 'epsilon':
        truth = noise
    elif kind == 'v_prediction':
        truth = scheduler.get_velocity(latent, noise, time)
    elif kind == 'sample':
        truth = latent
    else:
        raise ValueError(f'the scheduler predicts {kind!r}, which has no denoising loss here')
    return (predicted.float() - truth.float()).square().mean(dim=(1, 2, 3))


def _draw(posterior: Any, rng: torch.Generator) -> Tensor:
    noise = torch.randn(posterior.mean.shape, generator=rng)
    return posterior.mean + posterior.std * noise.to(posterior.mean)
