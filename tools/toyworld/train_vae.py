# SPDX-License-Identifier: Apache-2.0
"""Trains the autoencoder of the tiny Stable Diffusion: f=2, 4 latent channels, 0.4 M parameters.

Writes ``OUT/toybirds-sd/vae`` with the scaling factor that gives latents unit variance.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from common import (
    Progress,
    autocast,
    batches,
    draw_scenes,
    parser,
    render_all,
    replace_folder,
    to_input,
)
from safetensors.torch import load_file, save_file


def build():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        norm_num_groups=8,
        layers_per_block=1,
        block_out_channels=(32, 48),
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        mid_block_add_attention=False,
        sample_size=64,
    )
    # With the default of 0 the noise drowns the channels, and they become copies of one another.
    with torch.no_grad():
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(-6.0)
    return vae


@torch.no_grad()
def psnr(vae, images, device: str) -> float:
    """Peak signal-to-noise ratio in dB of the autoencoder's means, over all images at once."""
    error = 0.0
    for start in range(0, len(images), 64):
        x = to_input(images[start : start + 64], device)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error += float(((x - y) / 2).pow(2).mean()) * len(x) / len(images)
    return -10 * math.log10(error)


# (steps, peak learning rate, whether the decoder alone learns): the diffusion model may be trained
# on the latents of the first two cycles while the third sharpens the decoder.
CYCLES = ((2400, 2.5e-3, False), (1200, 1.5e-3, False), (700, 1.5e-3, True))


def train_cycle(vae, images: np.ndarray, args, cycle: int) -> None:
    steps, peak, decoder_only = CYCLES[cycle]
    torch.manual_seed(10 * cycle + 1)
    vae.train().requires_grad_(True)
    if decoder_only:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    learned = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, peak, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.05)
    report, order = Progress(steps), batches(len(images), args.batch, 10 * cycle + 1)
    for step in range(1, steps + 1):
        x = to_input(images[next(order)], args.device)
        with autocast(args.device):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        error = (y - x).pow(2).mean()
        kl = posterior.kl().mean() / 4096
        loss = error + 0.1 * (y - x).abs().mean() + 1e-5 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        report(step, error=error, kl=kl)


@torch.no_grad()
def save(vae, images: np.ndarray, args) -> None:
    """Sets the scaling factor and writes the autoencoder in half precision."""
    vae.eval()
    latents = torch.cat(
        [
            vae.encode(to_input(images[i : i + 64], args.device)).latent_dist.mean
            for i in range(0, 2048, 64)
        ]
    )
    print('means', latents.mean((0, 2, 3)).tolist(), 'std', latents.std((0, 2, 3)).tolist())
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    half = copy.deepcopy(vae).to(torch.float16)
    final = args.out / 'toybirds-sd' / 'vae'
    temporary = final.with_name('vae.tmp')
    half.save_pretrained(temporary)
    replace_folder(temporary, final)


def main() -> None:
    arguments = parser(__doc__, batch=8, scenes=12000, cycles=len(CYCLES))
    args = arguments.parse_args()
    torch.manual_seed(1)
    images = render_all(draw_scenes(args.scenes, 1), args.cache / f'vae_{args.scenes}.npy')
    held_out = render_all(draw_scenes(256, 2))
    vae = build().to(args.device, memory_format=torch.channels_last)
    print(f'{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters', flush=True)
    for cycle in range(args.cycles):
        state = args.cache / f'vae_cycle_{cycle}.safetensors'
        if state.exists():
            vae.load_state_dict(load_file(state))
            continue
        train_cycle(vae, images, args, cycle)
        save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, state)
        vae.eval()
        print(f'cycle {cycle}: held-out {psnr(vae, held_out, args.device):.2f} dB', flush=True)
        save(vae, images, args)


if __name__ == '__main__':
    main()
