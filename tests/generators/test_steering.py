# SPDX-License-Identifier: Apache-2.0
"""Steering against a chain that is written out, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler

from mmgap.generators import ImageToImageGenerator, InpaintingGenerator
from mmgap.generators.steering import Steering, decode, predicted_clean
from mmgap.sources import SourceSet
from tests.support.datasets import DrawnDataset

SEEDS, STEPS, SCALE = [11, 12], 5, 3.0


@pytest.fixture(scope='module')
def drawn_once(tmp_path_factory):
    return DrawnDataset(tmp_path_factory.mktemp('drawn'))


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return ImageToImageGenerator(
        str(tiny_sd), strength=0.8, dtype='float64', guidance_scale=SCALE, negative_prompt='x y'
    )


@pytest.fixture(scope='module')
def condition(generator, drawn_once):
    return SourceSet(drawn_once, generator.size).load([0, 1])


@pytest.fixture(scope='module')
def embeds(generator):
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    return generator.prompts.encode([prompt] * 2).detach()


class Coloured:
    """How far images are from colours that noise has; counts its calls."""

    def __init__(self, share=(1.0, 1.0)) -> None:
        self.share = torch.tensor(share)
        self.seen: list[torch.Tensor] = []

    def __call__(self, images):
        self.seen.append(images.detach().clone())
        rng = torch.Generator().manual_seed(0)
        wanted = torch.rand(images.shape[1:], generator=rng, dtype=torch.float64).to(images)
        return (images - wanted).square().mean(dim=(1, 2, 3)) * self.share.to(images)


def draw(generator, condition, embeds, steering=None, steps=STEPS):
    with torch.no_grad():
        return generator(condition, embeds, SEEDS, steps, steering)


def chain(generator, condition, embeds, loss, weight, every):
    """DDIM's image to image with classifier-free guidance, whose latents are moved."""
    pipe, steps = generator.pipeline, int(STEPS * 0.8)
    unet, vae, table = pipe.unet, pipe.vae, pipe.scheduler.alphas_cumprod.double()
    spacing = 1000 // STEPS
    times = [1 + spacing * i for i in reversed(range(steps))]
    negative = generator.prompts.encode_text(['x y']).detach().expand_as(embeds)
    rngs = [torch.Generator().manual_seed(seed) for seed in SEEDS]

    def noise():
        each = [torch.randn(1, 4, 8, 8, generator=rng, dtype=torch.float64) for rng in rngs]
        return torch.cat(each).to(embeds)

    with torch.no_grad():
        posterior = vae.encode(condition.images.to(embeds) / 255 * 2 - 1).latent_dist
        latents = (posterior.mean + posterior.std * noise()) * vae.config.scaling_factor
        latents = table[times[0]] ** 0.5 * latents + (1 - table[times[0]]) ** 0.5 * noise()
    for number, time in enumerate(times, start=1):
        now, after = table[time], table[max(0, time - spacing)]
        with torch.no_grad():
            without, prompted = (
                unet(latents, time, encoder_hidden_states=text).sample
                for text in (negative, embeds)
            )
        told = without + SCALE * (prompted - without)
        clean = (latents - (1 - now) ** 0.5 * told) / now**0.5
        if number % every == 0 and number < len(times):
            clean.requires_grad_()
            image = (vae.decode(clean / vae.config.scaling_factor).sample + 1) / 2
            (gradient,) = torch.autograd.grad(loss(image.clamp(0, 1)).sum(), clean)
            each = [one * (one.numel() / one.square().sum()) ** 0.5 for one in gradient]
            clean = clean.detach() - weight * torch.stack(each)
        latents = after**0.5 * clean + (1 - after) ** 0.5 * told
    with torch.no_grad():
        return ((vae.decode(latents / vae.config.scaling_factor).sample + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize('weight, every, moved', [(0.3, 1, 3), (0.3, 2, 1), (0.02, 1, 3)])
def test_a_steered_draw_is_the_chain_written_out(
    weight, every, moved, generator, condition, embeds
):
    loss, again = Coloured(), Coloured()
    images = draw(generator, condition, embeds, Steering(loss, weight, every))
    expected = chain(generator, condition, embeds, again, weight, every)
    assert len(loss.seen) == len(again.seen) == moved  # never at the last of four steps
    assert (images - expected).abs().max() < 1e-7  # directions are of single precision
    plain = draw(generator, condition, embeds)
    assert (images - plain).abs().max() > 1e-3
    assert (loss(images) < loss(plain)).all()


def test_steps_of_other_numbers(generator, condition, embeds):
    for steps, every, moved in [(8, 1, 5), (8, 2, 2), (8, 3, 1), (8, 9, 0), (2, 1, 0)]:
        loss = Coloured()
        draw(generator, condition, embeds, Steering(loss, 0.1, every), steps)
        assert len(loss.seen) == moved


def test_no_weight_is_no_steering(generator, condition, embeds):
    loss = Coloured()
    assert torch.equal(
        draw(generator, condition, embeds, Steering(loss, 0.0)), draw(generator, condition, embeds)
    )
    assert loss.seen == []


def test_an_image_without_a_gradient_stays(generator, condition, embeds):
    plain = draw(generator, condition, embeds)
    both = draw(generator, condition, embeds, Steering(Coloured(), 0.3))
    images = draw(generator, condition, embeds, Steering(Coloured((0.0, 1.0)), 0.3))
    assert torch.equal(images[0], plain[0]) and torch.isfinite(images).all()
    assert torch.equal(images[1], both[1]) and not torch.equal(images[1], plain[1])
    # Nor does the loss's size matter.
    scaled = draw(generator, condition, embeds, Steering(Coloured((1e-6, 50.0)), 0.3))
    assert (scaled - both).abs().max() < 1e-7


def test_the_direction_is_the_steepest(generator, condition, embeds, monkeypatch):
    """By finite differences of the decoded image's loss, against other directions."""
    pipe, loss, weight = generator.pipeline, Coloured(), 1e-2
    stock, calls = type(pipe.scheduler).step, []

    def noted(self, prediction, time, latents, *args, **kwargs):
        calls.append((prediction, int(time), latents))
        return stock(self, prediction, time, latents, *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), 'step', noted)
    draw(generator, condition, embeds)
    plain = calls[:]
    calls.clear()
    draw(generator, condition, embeds, Steering(loss, weight))
    told, time, latents = plain[0]
    table = pipe.scheduler.alphas_cumprod.double()
    clean = (latents - (1 - table[time]) ** 0.5 * told) / table[time] ** 0.5
    moved = (calls[1][2] - plain[1][2]) / table[plain[1][1]] ** 0.5 / weight
    assert moved.square().mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1])

    @torch.no_grad()
    def slope(direction, size=1e-5):
        up, down = (loss(decode(pipe, clean + sign * size * direction)) for sign in (1, -1))
        return (up - down) / (2 * size)

    steepest = slope(moved)
    assert (steepest < 0).all()
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = torch.randn(moved.shape, generator=rng, dtype=torch.float64).to(moved)
        near = moved + 0.3 * other
        for way in (other, near):
            way = way / way.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            assert (slope(way) > steepest).all()


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('scheduler', [DDIMScheduler, DDPMScheduler, LCMScheduler])
def test_clean_latents_are_those_of_the_scheduler(scheduler, kind):
    made = scheduler(prediction_type=kind, clip_sample=False, beta_schedule='scaled_linear')
    made.set_timesteps(4)
    rng = torch.Generator().manual_seed(0)
    told, latents = torch.randn(2, 2, 4, 8, 8, generator=rng)
    for time in made.timesteps:
        out = made.step(told, time, latents, generator=rng)
        found = predicted_clean(made, told, time, latents)
        if scheduler is LCMScheduler:  # it tells its mix of them with the latents
            skip, share = made.get_scalings_for_boundary_condition_discrete(time)
            expected = (out.denoised - skip * latents) / share
        else:
            expected = out.pred_original_sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_clean_latents_at_the_ends_of_the_noise():
    made = DDIMScheduler(
        prediction_type='v_prediction', clip_sample=False, rescale_betas_zero_snr=True
    )
    told, latents = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (predicted_clean(made, told, 999, latents) + told).abs().max() < 1e-3
    solver = DPMSolverMultistepScheduler(timestep_spacing='trailing')
    solver.set_timesteps(4)
    for time in solver.timesteps:
        solver._init_step_index(time)
        expected = solver.convert_model_output(told, sample=latents)
        found = predicted_clean(solver, told, time, latents)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def with_scheduler(folder, kind, **settings):
    return ImageToImageGenerator(
        str(folder), strength=0.8, guidance_scale=SCALE, scheduler=dict(type=kind), **settings
    )


@pytest.mark.parametrize('kind', ['DDPMScheduler', 'DPMSolverMultistepScheduler', 'LCMScheduler'])
def test_other_schedulers_that_can_be_followed(kind, tiny_sd, drawn_once):
    generator = with_scheduler(tiny_sd, kind)
    condition = SourceSet(drawn_once, generator.size).load([0, 1])
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    embeds, loss = generator.prompts.encode([prompt] * 2).detach(), Coloured()
    plain = draw(generator, condition, embeds)
    images = draw(generator, condition, embeds, Steering(loss, 0.3))
    assert len(loss.seen) == 3 and (loss(images) < loss(plain)).all()


@pytest.mark.parametrize('kind', ['EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler'])
def test_a_scheduler_that_cannot_be_followed(kind, tiny_sd, drawn_once):
    generator = with_scheduler(tiny_sd, kind)
    condition = SourceSet(drawn_once, generator.size).load([0, 1])
    embeds = torch.zeros(2, 20, 32)
    with pytest.raises(ValueError, match=f'cannot follow a {kind}; give .*DDIMScheduler'):
        draw(generator, condition, embeds, Steering(Coloured()))


def test_the_scheduler_is_as_before(generator, condition, embeds):
    def broken(images):
        raise KeyError('from the loss')

    scheduler = generator.pipeline.scheduler
    plain, before = draw(generator, condition, embeds), set(vars(scheduler))
    for loss, error in ((broken, KeyError), (lambda images: images.new_zeros(2), RuntimeError)):
        with pytest.raises(error):
            draw(generator, condition, embeds, Steering(loss))
        assert set(vars(scheduler)) == before and 'step' not in before
    draw(generator, condition, embeds, Steering(Coloured()))
    assert set(vars(scheduler)) == before
    assert torch.equal(draw(generator, condition, embeds), plain)


def test_what_is_kept_of_the_source_is_what_the_loss_sees(tiny_sd, drawn_once):
    generator = InpaintingGenerator(str(tiny_sd), guidance_scale=SCALE, eta=1.0)
    condition = SourceSet(drawn_once, generator.size).load([0, 1])
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    embeds, loss = generator.prompts.encode([prompt] * 2).detach(), Coloured()
    plain = draw(generator, condition, embeds)
    images = draw(generator, condition, embeds, Steering(loss, 0.3))
    kept, source = condition.masks.expand_as(images).cpu(), condition.images.cpu() / 255
    for seen in (*loss.seen, images):
        assert torch.equal(seen.cpu()[kept], source[kept])
    assert len(loss.seen) == STEPS - 1
    assert (loss(images) < loss(plain)).all()


def test_steering_does_not_need_the_prompts_gradient(generator, condition, embeds):
    """A draw with gradient to the prompt is moved as one without."""
    hidden = embeds.clone().requires_grad_()
    images = generator(condition, hidden, SEEDS, STEPS, Steering(Coloured(), 0.3))
    expected = draw(generator, condition, embeds, Steering(Coloured(), 0.3))
    assert (images - expected).abs().max() < 1e-7
    assert torch.autograd.grad(images.sum(), hidden)[0].abs().max() > 0


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(weight=-0.1), 'weight must be at least 0 and finite, got -0.1'),
        (dict(weight=float('nan')), 'weight must be at least 0 and finite, got nan'),
        (dict(weight=float('inf')), 'weight must be at least 0 and finite, got inf'),
        (dict(every=0), 'every must be at least 1, got 0'),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        Steering(Coloured(), **settings)


def test_decoding_is_that_of_the_pipeline(generator, condition, embeds, monkeypatch):
    """The last latents become the image that is drawn."""
    step, last = type(generator.pipeline.scheduler).step, []

    def noted(self, *args, **kwargs):
        last[:] = [step(self, *args, **kwargs)]
        return last[0]

    monkeypatch.setattr(type(generator.pipeline.scheduler), 'step', noted)
    images = draw(generator, condition, embeds)
    with torch.no_grad():
        assert torch.equal(decode(generator.pipeline, last[0][0]), images)
