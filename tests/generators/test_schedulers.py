# SPDX-License-Identifier: Apache-2.0
"""Schedulers are taken by what they do, and those draw finite images at any number of steps."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from diffusers.configuration_utils import FrozenDict
from mmengine.logging import MMLogger

from mmgap.compat import keep_ddim_finite
from mmgap.generators import InpaintingGenerator
from mmgap.generators.schedulers import (
    SchedulerError,
    build_scheduler,
    check_scheduler,
    check_steps,
    sample_known_image,
)
from mmgap.sources import SourceSet
from tests.support.tiny import save_tiny_pipeline

FIT = """
    DDIMParallel DDIM DDPMParallel DDPM DEISMultistep DPMSolverMultistep DPMSolverSinglestep
    EulerAncestralDiscrete EulerDiscrete HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete LCM
    LMSDiscrete PNDM SASolver TCD UniPCMultistep
""".split()
PLAIN = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
    skip_prk_steps=True,
)
MODELS = {
    'plain, leading': PLAIN,
    'plain, trailing': dict(PLAIN, timestep_spacing='trailing'),
    'zero SNR, leading': dict(PLAIN, prediction_type='v_prediction', rescale_betas_zero_snr=True),
    'zero SNR, trailing': dict(
        PLAIN,
        prediction_type='v_prediction',
        rescale_betas_zero_snr=True,
        timestep_spacing='trailing',
    ),
}


def build(name: str, model: dict, eta: float = 0.0, **settings):
    current = DDIMScheduler.from_config(model)
    scheduler = build_scheduler(current, dict(type=f'{name}Scheduler', **settings))
    keep_ddim_finite(scheduler, eta)
    return scheduler


@pytest.mark.parametrize('model', ['plain, leading', 'zero SNR, trailing'])
def test_which_can_draw(model):
    fit = []
    for name in (name for name in dir(diffusers) if name.endswith('Scheduler')):
        try:
            scheduler = build_scheduler(DDIMScheduler.from_config(MODELS[model]), dict(type=name))
            check_scheduler(scheduler, MODELS[model], strength=0.6, eta=1.0)
        except SchedulerError as error:
            assert name in str(error)
        else:
            fit.append(name.removesuffix('Scheduler'))
    assert sorted(fit) == sorted(FIT)


def check_all(names, models, steps):
    for name in names:
        for model in models:
            for eta in (0.0, 1.0):
                scheduler = build(name, MODELS[model], eta)
                for n in steps:
                    latents, known = sample_known_image(scheduler, MODELS[model], n, 1.0, eta)
                    where = f'{name}, {model}, eta {eta}, {n} steps'
                    assert torch.isfinite(latents).all(), where
                    if n >= 10:  # with fewer some begin too late to forget the noise
                        assert (latents - known).abs().max() < 0.3, where


def test_those_that_can_are_finite_at_any_number_of_steps():
    some = (*range(1, 15), 20, 25, 33, 50)
    check_all(['DDIM', 'DDIMParallel'], ['zero SNR, trailing', 'plain, leading'], some)
    check_all(FIT, MODELS, (1, 3, 10))


def test_a_generator_may_be_built_where_gradients_are_off(tiny_sd):
    with torch.no_grad():
        made = InpaintingGenerator(str(tiny_sd), scheduler=dict(type='DDIMScheduler'))
        made.check_steps(4, 'search')


@pytest.mark.slow  # minutes: 200 000 steps
def test_all_of_them_at_all_numbers_of_steps():
    check_all(FIT, MODELS, range(1, 51))


@pytest.mark.parametrize('kind', ['DDIM', 'DDIMParallel'])
def test_ddim_is_the_stock_one_where_that_is_finite(kind):
    """At some numbers of steps, which depend on the processor, the stock one is NaN."""
    model, broken = MODELS['zero SNR, trailing'], 0
    for steps in range(1, 51):
        stock = build_scheduler(DDIMScheduler.from_config(model), dict(type=f'{kind}Scheduler'))
        expected = sample_known_image(stock, model, steps, eta=1.0)[0]
        found = sample_known_image(build(kind, model, 1.0), model, steps, eta=1.0)[0]
        assert torch.isfinite(found).all()
        if torch.isfinite(expected).all():
            assert torch.equal(found, expected)
        else:
            broken += 1
    assert broken, 'the stock scheduler is finite now: keep_ddim_finite can go'


def test_the_class_itself_names_a_scheduler():
    """As in configs of the new style."""
    current = DDIMScheduler.from_config(PLAIN)
    made = build_scheduler(current, dict(type=diffusers.LCMScheduler, num_train_timesteps=900))
    assert type(made) is diffusers.LCMScheduler and made.config.num_train_timesteps == 900
    with pytest.raises(SchedulerError, match="'dict' is not a scheduler of diffusers"):
        build_scheduler(current, dict(type=dict))


def test_numbers_of_steps_that_a_scheduler_cannot_do():
    scheduler = build('PNDM', PLAIN, skip_prk_steps=False)
    check_steps(scheduler, PLAIN, 10)
    with pytest.raises(SchedulerError, match='num_inference_steps=3 .*; these can: DDIMPar.*UniPC'):
        check_steps(scheduler, PLAIN, 3)
    # A network that predicts noise says nothing of the image where there is nothing but noise.
    told = dict(PLAIN, rescale_betas_zero_snr=True, timestep_spacing='trailing')
    with pytest.raises(SchedulerError, match='DDIMScheduler.*NaN or Inf'):
        check_steps(build('DDIM', told), told, 5)


def test_generators_refuse_what_cannot_draw(tiny_sd):
    with pytest.raises(SchedulerError, match='EDMEulerScheduler.*; these can: .*DDIMScheduler'):
        InpaintingGenerator(str(tiny_sd), scheduler=dict(type='EDMEulerScheduler'))


def test_an_eta_that_does_nothing_is_told(tiny_sd, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', said.append)
    for kind, eta in (('PNDMScheduler', 1.0), ('PNDMScheduler', 0.0), ('DDIMScheduler', 1.0)):
        InpaintingGenerator(str(tiny_sd), scheduler=dict(type=kind), eta=eta)
    assert len(said) == 1 and 'PNDMScheduler takes no eta: eta=1.0' in said[0]


@pytest.fixture(scope='module')
def zero_snr(tmp_path_factory, tiny_sd):
    """The tiny Stable Diffusion with the schedule of the embedded world's."""
    folder = tmp_path_factory.mktemp('zero') / 'sd'
    shutil.copytree(tiny_sd, folder)
    file = folder / 'scheduler' / 'scheduler_config.json'
    config = json.loads(file.read_text()) | MODELS['zero SNR, trailing']
    file.write_text(json.dumps(config))
    return folder


def check_images(folder, drawn, kinds, steps):
    seeds, negative = [3], 'x'
    stock = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    own = stock.scheduler
    for kind in kinds:
        scheduler = dict(type=f'{kind}Scheduler')
        ours = InpaintingGenerator(
            str(folder), eta=1.0, negative_prompt=negative, scheduler=scheduler
        )
        stock.scheduler = build_scheduler(own, scheduler)
        condition = SourceSet(drawn, ours.size).load([1])
        embeds = ours.prompts.encode_text(['a b'])
        for n in steps:
            with torch.no_grad():
                images = ours.draw(condition, embeds, seeds, n).cpu()
            assert torch.isfinite(images).all(), f'{kind}, {n} steps'
            expected = stock(
                prompt_embeds=embeds.cpu(),
                negative_prompt=[negative],
                image=condition.images.float() / 255,
                mask_image=(~condition.masks).float(),
                height=ours.size[0],
                width=ours.size[1],
                num_inference_steps=n,
                eta=1.0,
                guidance_scale=7.0,
                generator=[torch.Generator().manual_seed(s) for s in seeds],
                output_type='pt',
            ).images
            if torch.isfinite(expected).all():
                # EulerAncestral is 1.07e-4 apart after one step from pure noise: rounding, grown.
                limit = 1e-4 if n > 1 else 2e-4
                assert (images - expected).abs().max() <= limit, f'{kind}, {n} steps'


def test_images_are_finite_and_the_stock_pipelines(zero_snr, drawn):
    check_images(zero_snr, drawn, ['DDIM'], (1, 3, 6, 14))
    check_images(zero_snr, drawn, FIT, (3,))


@pytest.mark.slow  # minutes: 3000 steps of two pipelines
def test_images_at_all_numbers_of_steps(zero_snr, drawn):
    check_images(zero_snr, drawn, ['DDIM', 'DDIMParallel'], range(1, 51))
    check_images(zero_snr, drawn, FIT, (1, 2, 4, 7, 20, 50))


def test_a_unet_of_eight_channels_is_refused(tmp_path):
    folder = save_tiny_pipeline(tmp_path / 'sd8', in_channels=8)
    with pytest.raises(ValueError, match='8 input channels; inpainting needs one with 4 or 9'):
        InpaintingGenerator(str(folder))


def test_a_generator_is_the_same_in_each_process(tiny_sd):
    """diffusers lists the settings that an old config leaves out in the order of a set."""
    generator, names = InpaintingGenerator(str(tiny_sd)), set()
    scheduler = generator.pipeline.scheduler
    for order in (['clip_sample', 'thresholding'], ['thresholding', 'clip_sample']):
        scheduler._internal_dict = FrozenDict({**scheduler.config, '_use_default_values': order})
        names.add(generator.fingerprint())
    assert len(names) == 1
