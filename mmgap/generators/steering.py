# SPDX-License-Identifier: Apache-2.0
"""Steering: latents are moved while they are denoised, so that a loss of the image falls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mmgap.generators.patching import patched

FOLLOWED = (
    'DDIMScheduler',
    'DDPMScheduler',
    'DPMSolverMultistepScheduler',
    'DEISMultistepScheduler',
    'LCMScheduler',
    'TCDScheduler',
)


class Steering:
    """Moves latents by the gradient of a loss of the clean image that a step predicts.

    At a step, the network's prediction says what the clean latents would be; they are decoded, and
    the loss of that image has a gradient to them, without going back through the network (as in
    FreeDoM, arXiv 2303.09833, and Deliberate Practice, arXiv 2502.15588). The latents go on moved
    against it. The last step is left alone: nothing would draw over what it is moved by.

    Args:
        loss: A function of ``(B, 3, H, W)`` images in [0, 1] with gradient, to ``(B,)`` losses.
        weight: How far the clean latents are moved at a step, root mean square over each image's;
            the latents themselves have a deviation of about one. Only the gradient's direction
            counts: an image without a gradient stays where it is.
        every: Steers at each so many steps.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, loss: Callable[[Tensor], Tensor], weight: float = 0.1, every: int = 1
    ) -> None:
        check_steering(weight, every)
        self.loss = loss
        self.weight = weight
        self.every = every

    @contextmanager
    def applied(
        self, pipeline: Any, num_calls: int, finish: Callable[[Tensor], Tensor]
    ) -> Iterator[None]:
        """Patch the scheduler's ``step`` for one run of a pipeline.

        Args:
            pipeline: Of diffusers, with a scheduler that :func:`check_followed` lets pass.
            num_calls: Number of denoising steps.
            finish: What the generator does to a decoded image.
        """
        scheduler = pipeline.scheduler
        stock, calls = scheduler.step, 0

        @wraps(stock)  # the pipeline looks at its signature
        def step(prediction: Tensor, timestep: Any, latents: Tensor, *args: Any, **kw: Any) -> Any:
            nonlocal calls
            calls += 1
            out = stock(prediction, timestep, latents, *args, **kw)
            if calls % self.every or calls == num_calls or self.weight == 0:
                return out
            if _says_nothing(scheduler, timestep):
                return out
            clean = predicted_clean(scheduler, prediction, timestep, latents)
            following = scheduler.timesteps[len(scheduler.timesteps) - num_calls + calls]
            scale = _alpha(scheduler, following).sqrt().to(latents)
            direction = self._direction(pipeline, clean, finish).to(latents.dtype)
            moved = out[0] - scale * self.weight * direction
            return (moved, *out[1:])

        with patched(scheduler, 'step', step):
            yield

    def _direction(
        self, pipeline: Any, clean: Tensor, finish: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``(B, C, h, w)``: the loss's gradient at the clean latents, of root mean square one.

        Raises:
            FloatingPointError: If it is not finite.
        """
        images = decode(pipeline, clean)
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            (wanted,) = torch.autograd.grad(self.loss(finish(leaf)).sum(), leaf)
            # Of size one, half precision holds it; image by image, memory holds the decoder.
            wanted = _normalised(wanted)
            parts: list[Tensor] = []
            for one, up in zip(clean.split(1), wanted.split(1), strict=True):
                latents = one.detach().requires_grad_()
                decoded = decode(pipeline, latents)
                parts += torch.autograd.grad(decoded, latents, up.to(decoded.dtype))
        return _normalised(torch.cat(parts).to(wanted.dtype))


def _normalised(gradient: Tensor) -> Tensor:
    """``(B, C, H, W)``: each image's gradient at a root mean square of one; 0 stays 0.

    Raises:
        FloatingPointError: If one is not finite; says which.
    """
    bad = [i for i, fine in enumerate(torch.isfinite(gradient).flatten(1).all(dim=1)) if not fine]
    if bad:
        raise FloatingPointError(
            f'the feedback that steers images has a gradient of NaN or Inf at images {bad} of '
            f'{len(gradient)} in the batch; lower guidance weight, leave out terms of its '
            "feedback, or take autocast='bfloat16' for the generator"
        )
    size = gradient.flatten(1).square().mean(dim=1).sqrt().view(-1, 1, 1, 1)
    return torch.where(size > 0, gradient / size.clamp(min=1e-30), 0.0)


def check_steering(weight: float, every: int) -> None:
    """See that numbers are in their range.

    Raises:
        ValueError: If one is not; names it.
    """
    if not 0 <= weight < float('inf'):
        raise ValueError(f'guidance weight must be at least 0 and finite, got {weight}')
    if every < 1:
        raise ValueError(f'guidance every must be at least 1, got {every}')


def check_followed(scheduler: Any) -> None:
    """See that a scheduler's latents are a mix of clean ones and noise, in shares that it knows.

    And that it goes on from them as they were moved: PNDM and UniPC step on from earlier ones.

    Raises:
        ValueError: If it is not one of those.
    """
    name = type(scheduler).__name__
    if name not in FOLLOWED:
        raise ValueError(
            f'guidance of samples cannot follow a {name}; give the generator '
            f"scheduler=dict(type='DDIMScheduler'), or one of {list(FOLLOWED[1:])}"
        )


def predicted_clean(scheduler: Any, prediction: Tensor, timestep: Any, latents: Tensor) -> Tensor:
    """The clean latents that a network's prediction stands for.

    Args:
        scheduler: One that :func:`check_followed` lets pass.
        prediction: ``(B, C, h, w)``, noise, velocity or clean latents, as the scheduler's
            ``prediction_type`` says.
        timestep: Of the latents.
        latents: ``(B, C, h, w)``, noisy.

    Returns:
        ``(B, C, h, w)``.
    """
    alpha = _alpha(scheduler, timestep).to(latents).clamp(min=1e-8)  # 0 at zero terminal SNR
    kind = scheduler.config.prediction_type
    if kind == 'v_prediction':
        return alpha.sqrt() * latents - (1 - alpha).sqrt() * prediction
    if kind == 'sample':
        return prediction
    return (latents - (1 - alpha).sqrt() * prediction) / alpha.sqrt()


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """``(B, 3, H, W)`` images in [0, 1] of clean latents, as the pipeline decodes its last ones."""
    config = pipeline.vae.config
    shift = getattr(config, 'shift_factor', None) or 0.0
    decoded = pipeline.vae.decode(latents / config.scaling_factor + shift, return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1)


def _says_nothing(scheduler: Any, timestep: Any) -> bool:
    """Whether latents are noise alone, as at zero terminal SNR: the noise in it tells nothing."""
    kind = scheduler.config.prediction_type
    return kind == 'epsilon' and float(_alpha(scheduler, timestep)) < 1e-4


def _alpha(scheduler: Any, timestep: Any) -> Tensor:
    """The share of clean latents at a timestep, squared."""
    return scheduler.alphas_cumprod[int(timestep)]
