# SPDX-License-Identifier: Apache-2.0
"""LoRA weights in the layouts of the programs that make them: all give the same model."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from safetensors.torch import save_file

from mmgap.generators import InpaintingGenerator
from mmgap.generators.lora import LoRA, merge_lora
from tests.support.hostile import Hostile

RANK, ALPHA = 2, 1.0
KINDS = ('to_q', 'to_k', 'to_v', 'to_out.0', 'q_proj', 'k_proj', 'v_proj', 'out_proj')


def pipeline(folder, kind=StableDiffusionInpaintPipeline):
    return kind.from_pretrained(folder, safety_checker=None)


@pytest.fixture(scope='module')
def layers(tiny_sd):
    """Random parts of the attention of UNet and text encoder, by network and layer."""
    pipe, found = pipeline(tiny_sd), {}
    torch.manual_seed(0)
    for network in ('unet', 'text_encoder'):
        for name, module in getattr(pipe, network).named_modules():
            if name.endswith(KINDS):
                down = torch.randn(RANK, module.in_features)
                found[network, name] = (down, torch.randn(module.out_features, RANK))
    return found


def spelled(network, name):
    """With the prefix that transformers' text encoders had when most files were made."""
    return name if network == 'unet' else f'text_model.{name.removeprefix("text_model.")}'


def dotted(layers, down, up):
    state = {}
    for (network, name), parts in layers.items():
        for ending, part in zip((down, up), parts, strict=True):
            state[f'{network}.{spelled(network, name)}{ending}'] = part
    return state


def kohya(layers):
    state = {}
    for (network, name), (down, up) in layers.items():
        start = dict(unet='lora_unet', text_encoder='lora_te')[network]
        key = f'{start}_{spelled(network, name)}'.replace('.', '_')
        parts = dict(lora_down=down, lora_up=up)
        state |= {f'{key}.{part}.weight': value for part, value in parts.items()}
        state[f'{key}.alpha'] = torch.tensor(ALPHA)
    return state


def processors(layers):
    """As diffusers had them first."""
    state = {}
    for (network, name), (down, up) in layers.items():
        start, _, end = spelled(network, name).rpartition(
            '.self_attn.' if network != 'unet' else '.to_'
        )
        if network == 'unet':
            base = f'{start}.processor.to_{end.removesuffix(".0")}'
        else:
            base = f'{start}.self_attn.to_{end.removesuffix("_proj")}'
        state |= {
            f'{network}.{base}_lora.down.weight': down,
            f'{network}.{base}_lora.up.weight': up,
        }
    return state


def adapter(layers):
    return {
        f'base_model.model.{name}.lora_{side}.weight': part
        for (network, name), parts in layers.items()
        if network == 'unet'
        for side, part in zip('AB', parts, strict=True)
    }


def save(state, path, **settings):
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path, **settings)
    return path


def distance(pipe, plain, layers, factors):
    """Largest distance of a merged pipeline's weights to those that they should be."""
    worst = 0.0
    for (network, name), (down, up) in layers.items():
        before, after = (getattr(p, network).get_submodule(name).weight for p in (plain, pipe))
        change = factors.get(network, 0) * torch.einsum('or...,ri...->oi...', up, down)
        worst = max(worst, (after - before - change.reshape(before.shape)).abs().max().item())
    return worst


def merged(folder, path, kind=StableDiffusionInpaintPipeline, **settings):
    pipe = pipeline(folder, kind)
    merge_lora(pipe, LoRA(str(path), **settings))
    return pipe


LAYOUTS = dict(
    diffusers=lambda layers: dotted(layers, '.lora_A.weight', '.lora_B.weight'),
    diffusers_older=lambda layers: {
        key.replace('.lora.', '.lora_linear_layer.') if key.startswith('text') else key: value
        for key, value in dotted(layers, '.lora.down.weight', '.lora.up.weight').items()
    },
    diffusers_first=processors,
    kohya=kohya,
)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, layers, tiny_sd, tmp_path):
    state, plain = LAYOUTS[layout](layers), pipeline(tiny_sd)
    save(state, tmp_path / 'name.safetensors')
    full = ALPHA / RANK if layout == 'kohya' else 1.0
    factors = dict(unet=full, text_encoder=full)
    assert distance(merged(tiny_sd, tmp_path), plain, layers, factors) < 1e-5  # the only file of it
    torch.save(state, tmp_path / 'name.pt')
    pipe = merged(tiny_sd, tmp_path / 'name.pt', scale=0.5)
    assert distance(pipe, plain, layers, {k: v / 2 for k, v in factors.items()}) < 1e-5
    stock = pipeline(tiny_sd)
    stock.load_lora_weights(state)
    stock.fuse_lora(lora_scale=0.5)
    stock.unload_lora_weights()
    assert distance(stock, plain, layers, {k: v / 2 for k, v in factors.items()}) < 1e-5


def test_alphas_beside_the_weights(layers, tiny_sd, tmp_path):
    """PEFT has them in a file of its own, diffusers in the header."""
    plain = pipeline(tiny_sd)
    config = dict(peft_type='LORA', r=RANK, lora_alpha=ALPHA)
    save(adapter(layers), tmp_path / 'adapter_model.safetensors')
    (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
    factors = dict(unet=ALPHA / RANK)
    assert distance(merged(tiny_sd, tmp_path), plain, layers, factors) < 1e-5
    (tmp_path / 'adapter_config.json').write_text(json.dumps(dict(config, use_rslora=True)))
    factors = dict(unet=ALPHA / RANK**0.5)
    assert distance(merged(tiny_sd, tmp_path), plain, layers, factors) < 1e-5
    (tmp_path / 'adapter_config.json').write_text(json.dumps(dict(config, use_dora=True)))
    with pytest.raises(ValueError, match='use_dora'):
        merged(tiny_sd, tmp_path)
    header = {'lora_adapter_metadata': json.dumps({'text_encoder.lora_alpha': 4, 'unet.r': RANK})}
    path = save(LAYOUTS['diffusers'](layers), tmp_path / 'new.safetensors', metadata=header)
    factors = dict(unet=1.0, text_encoder=4 / RANK)
    assert distance(merged(tiny_sd, path), plain, layers, factors) < 1e-5


def test_xl_in_the_names_of_the_original_unet(tiny_xl, tmp_path):
    plain, layers, state = pipeline(tiny_xl, StableDiffusionXLInpaintPipeline), {}, {}
    attention = 'transformer_blocks.0.attn1.to_q'
    for ours, theirs in {
        f'down_blocks.1.attentions.0.{attention}': f'input_blocks_3_1_{attention}',
        f'mid_block.attentions.0.{attention}': f'middle_block_1_{attention}',
        f'up_blocks.0.attentions.1.{attention}': f'output_blocks_1_1_{attention}',
        'up_blocks.0.upsamplers.0.conv': 'output_blocks_1_2_conv',
        'down_blocks.0.downsamplers.0.conv': 'input_blocks_2_0_op',
        'down_blocks.0.resnets.0.conv2': 'input_blocks_1_0_out_layers_3',
        'time_embedding.linear_1': 'time_embed_0',
        'add_embedding.linear_2': 'label_emb_0_2',
    }.items():
        layers['unet', ours] = 'lora_unet_' + theirs.replace('.', '_')
    for number in (1, 2):
        name = 'encoder.layers.1.mlp.fc1'
        encoder = getattr(plain, 'text_encoder' if number == 1 else 'text_encoder_2')
        name = next(n for n, _ in encoder.named_modules() if n.endswith(name))
        network = 'text_encoder' if number == 1 else 'text_encoder_2'
        layers[network, name] = f'lora_te{number}_text_model_encoder_layers_1_mlp_fc1'
    for (network, name), key in layers.items():
        weight = getattr(plain, network).get_submodule(name).weight
        down = torch.randn(RANK, *weight.shape[1:])
        up = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2))
        layers[network, name] = (down, up)
        state |= {f'{key}.lora_down.weight': down, f'{key}.lora_up.weight': up}
        state[f'{key}.alpha'] = torch.tensor(ALPHA)
    path = save(state, tmp_path / 'xl.safetensors')
    factors = dict.fromkeys(('unet', 'text_encoder', 'text_encoder_2'), ALPHA / RANK)
    pipe = merged(tiny_xl, path, StableDiffusionXLInpaintPipeline)
    assert distance(pipe, plain, layers, factors) < 1e-5


def test_what_cannot_be_merged_is_refused_whole(layers, tiny_sd, tmp_path):
    """Nothing is left out, and no file runs code."""
    good, pipe = kohya(layers), pipeline(tiny_sd)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    key = next(iter(good)).partition('.')[0]
    cases = {
        'it is a DoRA, and only LoRA': {f'{key}.dora_scale': torch.ones(1)},
        'it is a LoHa, and only LoRA': {f'{key}.hada_w1_a': torch.ones(1)},
        '1 of .* belong to no layer .* the first is .lora_unet_nowhere': {
            'lora_unet_nowhere.lora_up.weight': torch.ones(1)
        },
        'made for another model': {
            f'{key}.lora_down.weight': torch.ones(RANK, 7),
        },
    }
    for number, (words, change) in enumerate(cases.items()):
        path = save(good | change, tmp_path / f'{number}.safetensors')
        with pytest.raises(ValueError, match=words):
            merge_lora(pipe, LoRA(str(path)))
    half = {name: value for name, value in good.items() if name != f'{key}.lora_up.weight'}
    with pytest.raises(ValueError, match='a LoRA has down and up'):
        merge_lora(pipe, LoRA(str(save(half, tmp_path / 'half.safetensors'))))
    torch.save(dict(good, extra=Hostile(tmp_path / 'ran')), tmp_path / 'hostile.bin')
    with pytest.raises(ValueError, match='hostile.bin. cannot be read'):
        merge_lora(pipe, LoRA(str(tmp_path / 'hostile.bin')))
    assert not (tmp_path / 'ran').exists()
    (tmp_path / 'torn.safetensors').write_bytes(b'x' * 20)
    with pytest.raises(ValueError, match='is damaged'):
        merge_lora(pipe, LoRA(str(tmp_path / 'torn.safetensors')))
    with pytest.raises(FileNotFoundError, match='must hold one file .* or weight_name'):
        merge_lora(pipe, LoRA(str(tmp_path)))
    assert all(torch.equal(value, before[n]) for n, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize(
    'lora, says',
    [
        (dict(pth='a'), r"lora has no settings \['pth'\]; there are \['path', 'scale'"),
        (dict(scale=0.5), 'lora needs path, which is not given'),
        ([dict(path='a', scale='half')], "lora scale must be a number, got 'half'"),
        ([7], 'lora must be a dict of settings, got 7'),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(lora, says):
    with pytest.raises(TypeError, match=says):
        InpaintingGenerator('no such model', lora=lora)
