# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny depth ControlNet of the finished tiny Stable Diffusion, which stays as it is.

Needs ``OUT/toybirds-sd`` (``train_sd.py``). Writes ``OUT/toybirds-controlnet`` in diffusers' format
in half precision, and goes on from ``CACHE/controlnet_state.safetensors`` when that is there.
"""

from __future__ import annotations

import shutil
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from common import (
    Progress,
    autocast,
    batches,
    draw_scenes,
    load_state,
    parser,
    replace_folder,
    save_state,
    write_meta,
)
from muon import Muon
from torch import nn
from train_sd import add_noise, build_scheduler, draw_caption, encode_latents

from mmgap.generators import InverseDepth
from mmgap.toyworld.depth_splits import MAX_DEPTH
from mmgap.toyworld.renderer import Scene, render
from mmgap.toyworld.vocabulary import TIME_PHRASES, WEATHER_PHRASES

RATE = 2e-3  # peak learning rate


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Picture and metres, 0 where unknown, as ToyDepth has them."""
    rendering = render(scene)
    return rendering.image, np.where(rendering.depth < MAX_DEPTH, rendering.depth, 0)


def say(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that often leaves the place to the depth map, or says nothing at all.

    Half of the captions were empty where ControlNet was first trained (arXiv 2302.05543), so that
    it learns to read the condition; where the text tells all, there is nothing to learn.
    """
    draw = rng.random()
    if draw < 0.3:
        return draw_caption(scene, rng)
    if draw < 0.5:
        return ''
    time_of_day = rng.choice(TIME_PHRASES[scene.time])
    weather = rng.choice(WEATHER_PHRASES[scene.weather])
    return f'{time_of_day} {weather}' if draw < 0.7 else str(rng.choice([time_of_day, weather]))


def build(unet: nn.Module) -> nn.Module:
    """A copy of the UNet's first half; a picture of 64 pixels becomes features of 32."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))


def save(network: nn.Module, folder: Path) -> None:
    """Writes the ControlNet in half precision, whole or not at all."""
    temporary = folder.with_name(folder.name + '.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    network.half().save_pretrained(temporary)
    write_meta(temporary / 'world.json', trained_by='tools/toyworld/train_controlnet.py')
    replace_folder(temporary, folder)


def main() -> None:
    args = parser(__doc__, steps=4000, batch=32, scenes=12000, save_every=300).parse_args()
    torch.manual_seed(7)
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.models.attention_processor import AttnProcessor

    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        args.out / 'toybirds-sd', safety_checker=None, torch_dtype=torch.float32
    ).to(args.device)
    unet, text = pipe.unet.requires_grad_(False).eval(), pipe.text_encoder.eval()
    unet.set_attn_processor(AttnProcessor())  # as in train_sd.py
    unet.to(memory_format=torch.channels_last)
    scenes = draw_scenes(args.scenes, 7, backdrops=0.0)
    with Pool(2) as pool:
        images, depth = map(np.stack, zip(*pool.map(draw, scenes, 250), strict=True))
    latents = encode_latents(pipe.vae, images, args.device)
    control = (InverseDepth()(torch.from_numpy(depth)[:, None])[:, :1] * 255).round().byte()
    print(f'latents {tuple(latents.shape)}, control {tuple(control.shape)}', flush=True)

    model = build(unet).to(args.device, memory_format=torch.channels_last)
    print(f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters', flush=True)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = Muon(model, RATE, plain=('embedding', 'conv_in'))
    state_file, done = args.cache / 'controlnet_state.safetensors', 0
    if state_file.exists():
        done = load_state(state_file, model, average, optimizer)
        print(f'goes on from step {done}', flush=True)
    alphas = build_scheduler().alphas_cumprod.to(args.device)
    report, order = Progress(args.steps), batches(len(scenes), args.batch, 7 + done)
    rng, generator = np.random.default_rng([8, done]), torch.Generator().manual_seed(8 + done)
    for step in range(done + 1, args.steps + 1):
        warm = min(1.0, step / 60)
        for group in optimizer.param_groups:
            group['lr'] = RATE * warm * 0.5 * (1 + np.cos(np.pi * step / args.steps))
        index = next(order)
        ids = pipe.tokenizer(
            [say(scenes[i], rng) for i in index],
            padding='max_length',
            truncation=True,
            return_tensors='pt',
        ).input_ids.to(args.device)
        clean = latents[index].float().to(args.device)
        noisy, truth, times = add_noise(clean, alphas, generator)
        shown = (control[index].float() / 255).expand(-1, 3, -1, -1).to(args.device)
        with autocast(args.device):
            with torch.no_grad():
                states = text(ids).last_hidden_state
            down, middle = model(noisy, times, states, shown, return_dict=False)
            output = unet(
                noisy,
                times,
                states,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        loss = (output.float() - truth).pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step > 100:
            average.update_parameters(model)
        report(step, loss=loss)
        if step % args.save_every == 0 or step == args.steps:
            began = time.time()
            network = build(unet)
            network.load_state_dict(average.module.state_dict())
            save(network, args.out / 'toybirds-controlnet')
            save_state(state_file, model, average, optimizer, step)
            print(f'saved at step {step}, {time.time() - began:.0f} s', flush=True)
    state_file.unlink(missing_ok=True)


if __name__ == '__main__':
    main()
