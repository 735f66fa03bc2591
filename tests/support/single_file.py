# SPDX-License-Identifier: Apache-2.0
"""A diffusers folder as one file in the layout of the original Stable Diffusion."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import StableDiffusionInpaintPipeline
from safetensors.torch import save_file


def save_single_file(folder: Path, path: Path) -> Path:
    """Save a tiny Stable Diffusion as one file of the original layout, as people share them."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    state = {}
    for network, start, rename in (
        (pipe.unet, 'model.diffusion_model.', _ldm_unet),
        (pipe.vae, 'first_stage_model.', _ldm_vae),
        (pipe.text_encoder, 'cond_stage_model.transformer.text_model.', _without_prefix),
    ):
        for name, value in network.state_dict().items():
            if start.startswith('first') and re.search(
                r'attn_1\.(q|k|v|proj_out)\.w', rename(name)
            ):
                value = value[:, :, None, None]
            state[start + rename(name)] = value.contiguous()
    save_file(state, path)
    return path


def _ldm_unet(name: str, layers: int = 1) -> str:
    def numbered(found: re.Match) -> str:
        block, kind, layer = int(found[2]), found[3], int(found[4])
        number = block * (layers + 1) + layer + (found[1] == 'down')
        if kind == 'downsamplers':
            return f'input_blocks.{number + layers}.0.op.'
        if kind == 'upsamplers':  # the first block of the tiny one has attention
            return f'output_blocks.{number + layers}.{2 - block}.conv.'
        side = dict(down='input', up='output')[found[1]]
        return f'{side}_blocks.{number}.{int(kind == "attentions")}.'

    sides = r'(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(?:conv\.)?'
    for pattern, new in (
        (r'^time_embedding\.linear_1', 'time_embed.0'),
        (r'^time_embedding\.linear_2', 'time_embed.2'),
        (r'^conv_in', 'input_blocks.0.0'),
        (r'^conv_norm_out', 'out.0'),
        (r'^conv_out', 'out.2'),
        (r'(?<=resnets\.\d\.)norm1', 'in_layers.0'),
        (r'conv1\.', 'in_layers.2.'),
        (r'(?<=resnets\.\d\.)norm2', 'out_layers.0'),
        (r'conv2\.', 'out_layers.3.'),
        (r'time_emb_proj\.', 'emb_layers.1.'),
        (r'conv_shortcut\.', 'skip_connection.'),
        (r'^mid_block\.attentions\.0', 'middle_block.1'),
        (r'^mid_block\.resnets\.0', 'middle_block.0'),
        (r'^mid_block\.resnets\.1', 'middle_block.2'),
        (sides, numbered),
    ):
        name = re.sub(pattern, new, name)
    return name


def _ldm_vae(name: str, blocks: int = 2) -> str:
    for pattern, new in (
        (r'down_blocks\.(\d)\.resnets\.', r'down.\1.block.'),
        (r'down_blocks\.(\d)\.downsamplers\.0\.', r'down.\1.downsample.'),
        (r'up_blocks\.(\d)\.', lambda found: f'up.{blocks - 1 - int(found[1])}.'),
        (r'^(.*up\.\d\.)resnets\.', r'\1block.'),
        (r'upsamplers\.0\.', 'upsample.'),
        (r'mid_block\.resnets\.(\d)', lambda found: f'mid.block_{int(found[1]) + 1}'),
        (r'mid_block\.attentions\.0\.', 'mid.attn_1.'),
        (r'conv_norm_out', 'norm_out'),
        (r'conv_shortcut', 'nin_shortcut'),
        (r'attn_1\.group_norm', 'attn_1.norm'),
        (r'attn_1\.to_([qkv])', r'attn_1.\1'),
        (r'attn_1\.to_out\.0', 'attn_1.proj_out'),
    ):
        name = re.sub(pattern, new, name)
    return name


def _without_prefix(name: str) -> str:  # it depends on the version of transformers
    return name.removeprefix('text_model.')
