# SPDX-License-Identifier: Apache-2.0
"""Which schedulers of diffusers can draw with a model, found by what they do, not by name."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmgap.compat import keep_ddim_finite
from mmgap.configs import name_of

NEEDED = ('add_noise', 'init_noise_sigma', 'scale_model_input', 'set_timesteps', 'step')
# A scheduler that knows the model is off by 0.00 to 0.15 below, one that does not by 0.2 and more.
MOST_NOISE_OFF = 0.15
MOST_IMAGE_OFF = 0.3
MANY_STEPS = 25  # enough for any of them to come close


class SchedulerError(ValueError):
    """A scheduler cannot draw with a model."""


def build_scheduler(current: Any, config: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers; what its config does not name is taken from the model's own.

    Args:
        current: The model's own scheduler.
        config: ``type``, a name or the class, by default that of ``current``, and its settings.

    Raises:
        SchedulerError: If there is no such scheduler, or it cannot be made with these settings.
    """
    import diffusers

    settings = dict(config)
    kind = settings.pop('type', type(current))
    name = name_of(kind)
    if isinstance(kind, str):
        kind = getattr(diffusers, name, None)
    if not hasattr(kind, 'from_config'):
        raise SchedulerError(f'scheduler type {name!r} is not a scheduler of diffusers')
    try:
        return kind.from_config(current.config, **settings)
    except (TypeError, ValueError, NotImplementedError, KeyError, ImportError) as error:
        raise SchedulerError(
            f'scheduler type {name!r} cannot be made with {settings}: {error}'
        ) from error


@torch.enable_grad()
def check_scheduler(
    scheduler: Any, model: Mapping[str, Any], strength: float = 1.0, eta: float = 0.0
) -> None:
    """See whether a scheduler can draw with a model.

    It must add the noise that the model was trained on, and its steps must lead back from there:
    a network that knows the right answer takes the place of the model's, so this costs nothing.
    Each image must depend on its own seed alone, and the gradient must come through.

    Args:
        scheduler: A scheduler of diffusers.
        model: The settings of the model's own scheduler: how it was trained, and what it predicts
            (``prediction_type``).
        strength: Share of the steps that is run.
        eta: DDIM's noise.

    Raises:
        SchedulerError: If it cannot; says why, and which can.
    """
    with _silence():
        wrong = _what_is_wrong(scheduler, model, strength, eta)
        if wrong:
            raise SchedulerError(
                f'scheduler type {type(scheduler).__name__!r} cannot draw with this model: {wrong};'
                f' {_those_that_can(model, (), strength, eta)}'
            )


@torch.enable_grad()
def check_steps(
    scheduler: Any,
    model: Mapping[str, Any],
    num_inference_steps: int,
    strength: float = 1.0,
    eta: float = 0.0,
) -> None:
    """See whether a scheduler's own arithmetic is finite at a number of steps.

    Arguments as in :func:`check_scheduler`.

    Raises:
        SchedulerError: If it is not; says which are.
    """
    with _silence():
        wrong = _what_is_wrong_at(scheduler, model, num_inference_steps, strength, eta)
        if wrong:
            raise SchedulerError(
                f'scheduler type {type(scheduler).__name__!r} cannot draw with num_inference_steps='
                f'{num_inference_steps} at strength={strength} and eta={eta}: {wrong}; '
                f'{_those_that_can(model, (num_inference_steps,), strength, eta)}'
            )


def sample_known_image(
    scheduler: Any,
    model: Mapping[str, Any],
    num_inference_steps: int,
    strength: float = 1.0,
    eta: float = 0.0,
    seeds: tuple[int, ...] = (0, 1),
) -> tuple[Tensor, Tensor]:
    """Run a pipeline's loop with a network that knows the image and predicts exactly.

    Args:
        scheduler: A scheduler of diffusers.
        model: As in :func:`check_scheduler`.
        num_inference_steps: Denoising steps.
        strength: As in :func:`check_scheduler`.
        eta: As in :func:`check_scheduler`.
        seeds: One for each image.

    Returns:
        The latents that come out, ``(len(seeds), 4, 2, 2)``, with gradient to a factor of what the
        network predicts; and those that it knows.
    """
    alphas = _alphas_cumprod(model)
    # The schedulers of a pipeline look their tables up on the CPU.
    scheduler.set_timesteps(num_inference_steps, device='cpu')
    skipped = num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)
    first = skipped * getattr(scheduler, 'order', 1)
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, 'set_begin_index'):
        scheduler.set_begin_index(first)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    known = torch.tensor([-0.7, 0.3, 0.9, -0.2]).view(1, 4, 1, 1).expand(len(seeds), 4, 2, 2)
    noise = torch.cat([torch.randn(1, 4, 2, 2, generator=generator) for generator in generators])
    if strength == 1:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(known, noise, timesteps[:1].repeat(len(seeds)))
    accepted = inspect.signature(scheduler.step).parameters
    further = dict(eta=eta, generator=generators)
    further = {name: value for name, value in further.items() if name in accepted}
    factor = torch.ones((), requires_grad=True)
    for number, time in enumerate(timesteps):
        seen = scheduler.scale_model_input(latents, time)
        predicted = factor * _predicted(seen, known, _at(alphas, time), model)
        latents = scheduler.step(predicted, time, latents, **further, return_dict=False)[0]
        if number + 1 < len(timesteps):  # as inpainting does around the mask
            scheduler.add_noise(known, noise, timesteps[number + 1 : number + 2])
    return latents, known


def _what_is_wrong(
    scheduler: Any, model: Mapping[str, Any], strength: float, eta: float
) -> str | None:
    scheduler = _again(scheduler, eta)
    missing = [name for name in NEEDED if not hasattr(scheduler, name)]
    if missing:
        return f'it has no {" and no ".join(missing)}'
    try:
        off = _noise_off(scheduler, model)
        if not off < MOST_NOISE_OFF:
            return f'the noise that it adds is not what the model was trained on ({off:.2f} off)'
        steps = max(MANY_STEPS, int(1 / strength) + 1)
        latents, known = sample_known_image(scheduler, model, steps, strength, eta)
        alone, _ = sample_known_image(scheduler, model, steps, strength, eta, seeds=(1,))
    except Exception as error:  # each of the unfit ones fails in its own way
        return f'its arithmetic ends in {type(error).__name__}: {error}'
    off = float((latents - known).detach().abs().max())
    if not off < MOST_IMAGE_OFF:
        kind = model.get('prediction_type', 'epsilon')
        return f'its steps do not lead back to the image where the model predicts {kind!r}'
    if not torch.allclose(latents[1:], alone, atol=1e-4):
        return 'its images do not depend on their own seeds alone'
    if not latents.requires_grad:
        return 'no gradient comes through its steps'
    return None


def _what_is_wrong_at(
    scheduler: Any, model: Mapping[str, Any], steps: int, strength: float, eta: float
) -> str | None:
    try:
        latents, _ = sample_known_image(_again(scheduler, eta), model, steps, strength, eta)
    except Exception as error:  # as above
        return f'its arithmetic ends in {type(error).__name__}: {error}'
    return None if torch.isfinite(latents).all() else 'its arithmetic gives NaN or Inf'


def _those_that_can(
    model: Mapping[str, Any], steps: tuple[int, ...], strength: float, eta: float
) -> str:
    fit = _names_of_those_that_can(json.dumps(dict(model), default=str), steps, strength, eta)
    return f'these can: {", ".join(fit)}' if fit else 'none of diffusers can'


@lru_cache(maxsize=16)
def _names_of_those_that_can(
    settings: str, steps: tuple[int, ...], strength: float, eta: float
) -> list[str]:
    import diffusers

    model = json.loads(settings)
    current = diffusers.DDIMScheduler.from_config(model)
    fit = []
    for name in sorted(name for name in dir(diffusers) if name.endswith('Scheduler')):
        try:
            other = build_scheduler(current, dict(type=name))
        except SchedulerError:
            continue
        fits = _what_is_wrong(other, model, strength, eta) is None
        if fits and not any(_what_is_wrong_at(other, model, n, strength, eta) for n in steps):
            fit.append(name)
    return fit


def _again(scheduler: Any, eta: float) -> Any:
    """A scheduler of the same settings: some change their own as they run."""
    other = type(scheduler).from_config(dict(scheduler.config))
    keep_ddim_finite(other, eta)
    return other


def _noise_off(scheduler: Any, model: Mapping[str, Any]) -> float:
    """How far noised latents are, as the network sees them, from those that it was trained on."""
    alphas = _alphas_cumprod(model)
    scheduler.set_timesteps(MANY_STEPS, device='cpu')
    known, noise = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), -1.0)
    off = 0.0
    for time in scheduler.timesteps:
        seen = scheduler.scale_model_input(scheduler.add_noise(known, noise, time[None]), time)
        alpha = _at(alphas, time)
        off = max(off, float((seen - (alpha.sqrt() - (1 - alpha).sqrt())).abs().max()))
        if hasattr(scheduler, '_step_index'):  # the next one is another
            scheduler._step_index = None
    return off


def _predicted(seen: Tensor, known: Tensor, alpha: Tensor, model: Mapping[str, Any]) -> Tensor:
    """What the right answer is, in float64 inside."""
    seen, known = seen.detach().double(), known.double()
    noise = (seen - alpha.sqrt() * known) / (1 - alpha).sqrt()
    kind = model.get('prediction_type', 'epsilon')
    answers = dict(
        epsilon=noise,
        sample=known.expand_as(seen),
        v_prediction=alpha.sqrt() * noise - (1 - alpha).sqrt() * known,
    )
    if kind not in answers:
        raise ValueError(f'prediction_type={kind!r} is none of {sorted(answers)}')
    return answers[kind].float()


def _alphas_cumprod(model: Mapping[str, Any]) -> Tensor:
    """``(num_train_timesteps,)`` float64: the image's share in what the model was trained on."""
    from diffusers import DDPMScheduler

    with _silence():
        return DDPMScheduler.from_config(dict(model)).alphas_cumprod.double()


def _at(alphas: Tensor, time: Tensor) -> Tensor:
    """The entry of a time, which some schedulers put between two."""
    low = min(max(int(time), 0), len(alphas) - 1)
    high = min(low + 1, len(alphas) - 1)
    return torch.lerp(alphas[low], alphas[high], min(max(float(time) - low, 0.0), 1.0))


@contextmanager
def _silence() -> Iterator[None]:
    """Without warnings: of settings that a scheduler does not know, and of NumPy's future."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.set_verbosity(before)
