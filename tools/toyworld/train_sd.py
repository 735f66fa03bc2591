# SPDX-License-Identifier: Apache-2.0
"""Trains text encoder and UNet of the tiny Stable Diffusion on cached latents.

Needs ``OUT/toybirds-sd/vae`` (``train_vae.py``). Writes the whole folder in diffusers' format, an
intermediate one now and then, and goes on from ``CACHE/sd_state.safetensors`` when that is there.
"""

from __future__ import annotations

import shutil
import time
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
    render_all,
    replace_folder,
    save_state,
    to_input,
    write_meta,
)
from muon import Muon
from safetensors.torch import load_file, save_file
from torch import nn

from mmgap.toyworld.renderer import caption
from mmgap.toyworld.tokenizer import CONTEXT_LENGTH, EOS, build_tokenizer

RATE = 1.5e-3  # peak learning rate
FIRST_TIME = 40  # with up to 20 trailing steps no earlier time is ever sampled


def build() -> nn.ModuleDict:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(32, 64, 96, 128),
        attention_head_dim=4,
        cross_attention_dim=128,
        down_block_types=('DownBlock2D', 'DownBlock2D', *('CrossAttnDownBlock2D',) * 2),
        up_block_types=(*('CrossAttnUpBlock2D',) * 2, 'UpBlock2D', 'UpBlock2D'),
    )
    # The fused kernel's backward pass is several times slower than this on so few tokens.
    unet.set_attn_processor(AttnProcessor())
    return nn.ModuleDict({'text': text, 'unet': unet})


def build_scheduler():
    from diffusers import DDIMScheduler

    # Sampling starts from pure noise, so the last training step must be pure noise too.
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='scaled_linear',
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type='v_prediction',
        rescale_betas_zero_snr=True,
        timestep_spacing='trailing',
        steps_offset=1,
    )


@torch.no_grad()
def encode_latents(vae, images: np.ndarray, device: str) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 -> scaled latent means, (N, 4, 32, 32) float16 on the CPU."""
    parts = []
    for start in range(0, len(images), 128):
        with autocast(device):
            mean = vae.encode(to_input(images[start : start + 128], device)).latent_dist.mean
        parts.append((mean * vae.config.scaling_factor).half().cpu().contiguous())
    return torch.cat(parts).contiguous()


def gibberish(rng: np.random.Generator) -> str:
    """Unknown words, as a negative prompt may hold them; they shall mean nothing."""
    return ', '.join('q' * int(rng.integers(2, 9)) for _ in range(int(rng.integers(1, 6))))


def draw_caption(scene, rng: np.random.Generator) -> str:
    if rng.random() < 0.1:
        return '' if rng.random() < 0.7 else gibberish(rng)
    return caption(scene, rng)


def add_noise(
    clean: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, 4, h, w) as a step of training sees them: noisy, what to predict, times."""
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    # One stratum per sample: a batch covers all times evenly.
    number = len(clean)
    strata = torch.randperm(number, generator=generator)
    times = (strata + torch.rand(number, generator=generator)) / number
    times = (FIRST_TIME + times * (1000 - FIRST_TIME)).long().clamp(max=999).to(clean.device)
    a = alphas[times].sqrt()[:, None, None, None]
    b = (1 - alphas[times]).sqrt()[:, None, None, None]
    noisy = (a * clean + b * noise).contiguous(memory_format=torch.channels_last)
    return noisy, a * noise - b * clean, times


def save_pipeline(networks: nn.ModuleDict, vae, folder: Path) -> None:
    """Writes the pipeline in half precision, whole or not at all."""
    from diffusers import StableDiffusionInpaintPipeline

    temporary = folder.with_name(folder.name + '.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    pipe = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=networks['text'],
        tokenizer=build_tokenizer(),
        unet=networks['unet'],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.float16).save_pretrained(temporary)
    vae.float()
    write_meta(temporary / 'world.json', trained_by='tools/toyworld/train_sd.py')
    replace_folder(temporary, folder)


def main() -> None:
    args = parser(__doc__, steps=2600, batch=32, scenes=24000, save_every=300).parse_args()
    torch.manual_seed(2)
    from diffusers import AutoencoderKL

    folder = args.out / 'toybirds-sd'
    vae = AutoencoderKL.from_pretrained(folder / 'vae', torch_dtype=torch.float32)
    vae = vae.to(args.device).eval()
    scenes = draw_scenes(args.scenes, 3)
    cached = args.cache / f'latents_{args.scenes}.safetensors'
    if cached.exists():  # of an interrupted run of this script
        latents = load_file(cached)['latents']
    else:
        latents = encode_latents(
            vae, render_all(scenes, args.cache / f'sd_{args.scenes}.npy'), args.device
        )
        save_file({'latents': latents}, cached)
    print(f'latents {tuple(latents.shape)} std {latents.float().std():.3f}', flush=True)

    model = build().to(args.device, memory_format=torch.channels_last)
    for name, part in model.items():
        print(name, f'{sum(p.numel() for p in part.parameters()) / 1e6:.2f} M', flush=True)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimizer = Muon(model, RATE, plain=('embedding', 'conv_in', 'conv_out'))

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / 60)
        return warm * 0.5 * (1 + np.cos(np.pi * min(step / args.steps, 1.0)))

    state_file, done = args.cache / 'sd_state.safetensors', 0
    if state_file.exists():
        done = load_state(state_file, model, average, optimizer)
        print(f'goes on from step {done}', flush=True)
    tokenizer, alphas = build_tokenizer(), build_scheduler().alphas_cumprod.to(args.device)
    report, order = Progress(args.steps), batches(len(scenes), args.batch, 3 + done)
    rng = np.random.default_rng([4, done])
    generator = torch.Generator().manual_seed(4 + done)
    for step in range(done + 1, args.steps + 1):
        for group in optimizer.param_groups:
            group['lr'] = RATE * rate(step)
        index = next(order)
        ids = tokenizer(
            [draw_caption(scenes[i], rng) for i in index],
            padding='max_length',
            truncation=True,
            return_tensors='pt',
        ).input_ids.to(args.device)
        clean = latents[index].float().to(args.device)
        noisy, truth, times = add_noise(clean, alphas, generator)
        with autocast(args.device):
            states = model['text'](ids).last_hidden_state
            output = model['unet'](noisy, times, states).sample
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
            networks = build()
            networks.load_state_dict(average.module.state_dict())
            save_pipeline(networks, vae, folder)
            save_state(state_file, model, average, optimizer, step)
            print(f'saved at step {step}, {time.time() - began:.0f} s', flush=True)
    state_file.unlink(missing_ok=True)
    cached.unlink(missing_ok=True)


if __name__ == '__main__':
    main()
