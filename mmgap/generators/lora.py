# SPDX-License-Identifier: Apache-2.0
"""LoRA weights in the layouts in which people have them, merged into a pipeline's own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmgap.typed import build_settings

# Of each layout the endings of a layer's keys: kohya-ss, PEFT, PEFT with an adapter's name, and
# diffusers' newer and older ones.
ENDINGS = {
    f'{before}{word}.weight': part
    for before, words in {
        '.': ('lora_down', 'lora_up'),
        '.lora_': ('A', 'B'),
        '.lora.': ('down', 'up'),
        '.lora_linear_layer.': ('down', 'up'),
        '_lora.': ('down', 'up'),
    }.items()
    for word, part in zip(words, ('down', 'up'), strict=True)
} | {'.lora_A.default.weight': 'down', '.lora_B.default.weight': 'up', '.alpha': 'alpha'}
# Networks by what keys begin with.
PREFIXES = dict(
    unet='unet',
    text_encoder='text_encoder',
    text_encoder_2='text_encoder_2',
    lora_unet='unet',
    lora_te='text_encoder',
    lora_te1='text_encoder',
    lora_te2='text_encoder_2',
)
# Layers of the original UNet by their names in diffusers; those of its blocks are numbered anew.
LDM_LAYERS = dict(
    input_blocks_0_0='conv_in',
    out_2='conv_out',
    time_embed_0='time_embedding_linear_1',
    time_embed_2='time_embedding_linear_2',
    label_emb_0_0='add_embedding_linear_1',
    label_emb_0_2='add_embedding_linear_2',
)
LDM_PARTS = dict(
    in_layers_2='conv1',
    out_layers_3='conv2',
    emb_layers_1='time_emb_proj',
    skip_connection='conv_shortcut',
)
SAFE = '.safetensors'


@dataclass(frozen=True)
class LoRA:
    """LoRA weights that a config names.

    Args:
        path: Folder, file or hub id of LoRA weights as kohya-ss, diffusers or PEFT save them, of
            linear layers or convolutions.
        scale: Factor of the change.
        weight_name: The file, where the folder has several, or the hub's another than
            ``pytorch_lora_weights.safetensors``.
    """

    path: str
    scale: float = 1.0
    weight_name: str | None = None

    @classmethod
    def named(cls, lora: Any) -> list[LoRA]:
        """Those of a generator's setting: None, a path, a dict, or a list of such.

        Raises:
            TypeError: If one has no such setting, lacks its path, or one has another type.
        """
        parts = [lora] if isinstance(lora, (str, Mapping)) else lora or ()
        dicts = [dict(path=part) if isinstance(part, str) else part for part in parts]
        return [build_settings(cls, part, 'lora') for part in dicts]


def merge_lora(pipeline: Any, lora: LoRA) -> None:
    """Add LoRA weights to those of a pipeline: ``scale * alpha / rank * up @ down`` each.

    Args:
        pipeline: A diffusers pipeline, changed in place.
        lora: The weights.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If one of them belongs to no layer of the model or is no LoRA (DoRA, LoHa,
            LoKr), or the file cannot be read, or holds code.
    """
    file = find_lora(lora.path, lora.weight_name)
    state, stored = read_lora(file)
    networks = {
        name: getattr(pipeline, name)
        for name in ('unet', 'text_encoder', 'text_encoder_2')
        if getattr(pipeline, name, None) is not None
    }
    try:
        changes = []
        for (name, layer), parts in layers_of(state, networks).items():
            weight = networks[name].get_submodule(layer).weight
            settings = stored.get(name, stored.get('', {}))
            changes.append((weight, parts, _factor(weight, parts, settings, f'{name}.{layer}')))
    except ValueError as error:
        raise ValueError(f'lora={str(file)!r} does not fit the model: {error}') from error
    with torch.no_grad():
        for weight, parts, factor in changes:  # one after the other: together they would be large
            up, down = (parts[part].double().flatten(1) for part in ('up', 'down'))
            change = lora.scale * factor * (up @ down).reshape(weight.shape)
            weight += change.to(weight.device, weight.dtype)


def find_lora(path: str, weight_name: str | None = None) -> Path:
    """The file of LoRA weights that a setting means. Arguments as of :class:`LoRA`.

    Raises:
        FileNotFoundError: If there is none, or several and none was chosen.
    """
    place = Path(path)
    if place.is_file():
        return place
    if place.is_dir():
        names = [weight_name] if weight_name else ['pytorch_lora_weights', 'adapter_model']
        known = [place / name for name in names] + [place / f'{name}{SAFE}' for name in names]
        found = sorted(p for p in place.iterdir() if p.suffix in (SAFE, '.bin', '.pt'))
        found = [p for p in known if p.is_file()] or (found if weight_name is None else [])
        if len(found) == 1:
            return found[0]
        raise FileNotFoundError(
            f'lora={path!r} must hold one file of LoRA weights, or weight_name must say which; it '
            f'holds {sorted(p.name for p in place.iterdir())}, weight_name={weight_name!r}'
        )
    if place.is_absolute() or path.count('/') != 1:
        raise FileNotFoundError(f'lora={path!r} is neither a folder, a file nor a hub id')
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, weight_name or f'pytorch_lora_weights{SAFE}'))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f'lora={path!r} cannot be loaded: {error}') from error


def read_lora(file: Path) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Any]]]:
    """Tensors of a file, and what PEFT or diffusers say of their rank and alpha.

    Returns:
        The tensors by key. The settings by network, those of a PEFT folder under ``''``.

    Raises:
        ValueError: If the file cannot be read, or holds something else than tensors.
    """
    header: Mapping[str, str] = {}
    try:
        if file.suffix == SAFE:
            with safe_open(file, framework='pt') as opened:
                header = opened.metadata() or {}
                state = {key: opened.get_tensor(key) for key in opened.keys()}
        else:
            state = torch.load(file, map_location='cpu', weights_only=True)
    except (SafetensorError, OSError):
        raise ValueError(f'lora={str(file)!r} is damaged or no {SAFE} file') from None
    except Exception as error:  # a damaged pickle can fail in any way; it never runs code
        raise ValueError(f'lora={str(file)!r} cannot be read: {error}') from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f'lora={str(file)!r} holds something else than tensors')
    stored: dict[str, Any] = {}
    config = file.with_name('adapter_config.json')
    if file.stem == 'adapter_model' and config.is_file():
        stored[''] = json.loads(config.read_text())
    for key, value in json.loads(header.get('lora_adapter_metadata') or '{}').items():
        name, _, setting = key.partition('.')
        stored.setdefault(name, {})[setting] = value
    return state, stored


def layers_of(
    state: Mapping[str, Tensor], networks: Mapping[str, nn.Module]
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """The parts ``down``, ``up`` and ``alpha`` of each layer, by network and layer.

    Raises:
        ValueError: If a tensor is no part of a LoRA, or belongs to no layer.
    """
    known = {
        name: {
            layer.replace('.', '_'): layer
            for layer, module in network.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
        }
        for name, network in networks.items()
    }
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    strange = []
    for key, value in state.items():
        ending = next((e for e in sorted(ENDINGS, key=len)[::-1] if key.endswith(e)), '')
        place = _find(key.removesuffix(ending), known, networks) if ending else None
        if place is None:
            strange.append(key)
        else:
            found.setdefault(place, {})[ENDINGS[ending]] = value
    if strange:
        kinds = dict(dora_scale='DoRA', hada_='LoHa', lokr_='LoKr', lora_magnitude='DoRA')
        kind = next((k for word, k in kinds.items() if any(word in key for key in strange)), None)
        raise ValueError(
            (f'it is a {kind}, and only LoRA can be merged; ' if kind else '')
            + f'{len(strange)} of {len(state)} tensors belong to no layer of {list(networks)}, the '
            f'first is {strange[0]!r}'
        )
    return found


def _find(
    base: str, known: Mapping[str, Mapping[str, str]], networks: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Network and layer that a key without its ending means; None if there is none."""
    flat = base.replace('.processor.', '.').replace('.', '_').removeprefix('base_model_model_')
    prefix = next((p for p in sorted(PREFIXES)[::-1] if flat.startswith(f'{p}_')), None)
    names = [PREFIXES[prefix]] if prefix else list(known)
    flat = flat.removeprefix(f'{prefix}_')
    for name in names:
        layers = known.get(name, {})
        for spelled in _spellings(flat, name, networks):
            if spelled in layers:
                return name, layers[spelled]
    return None


def _spellings(flat: str, name: str, networks: Mapping[str, Any]) -> list[str]:
    """A layer's name as it is, and as this version of diffusers or transformers may call it."""
    if name == 'unet':
        flat = _from_ldm(flat, networks['unet'].config.layers_per_block)
        return [flat, f'{flat}_0']  # to_out is a list of two
    attention = dict(to_q='q_proj', to_k='k_proj', to_v='v_proj', to_out='out_proj')
    for old, new in attention.items():
        flat = re.sub(f'_{old}$', f'_{new}', flat)
    return [flat, flat.removeprefix('text_model_'), f'text_model_{flat}']


def _from_ldm(flat: str, layers: int | list[int]) -> str:
    """The name in diffusers of a UNet's layer in the original one, as kohya-ss has it for XL."""
    if flat in LDM_LAYERS:
        return LDM_LAYERS[flat]
    found = re.match(r'(input|middle|output)_blocks?_(\d+)_(?:(\d+)_)?(.+)', flat)
    if found is None or not isinstance(layers, int):
        return flat
    side, first, kind, rest = found[1], int(found[2]), int(found[3] or 0), found[4]
    rest = LDM_PARTS.get(rest, rest)
    if side == 'middle':
        return f'mid_block_{("resnets_0", "attentions_0", "resnets_1")[first % 3]}_{rest}'
    block, layer = divmod(first - (side == 'input'), layers + 1)
    if side == 'input' and rest == 'op':
        return f'down_blocks_{block}_downsamplers_0_conv'
    if side == 'output' and rest == 'conv':
        return f'up_blocks_{block}_upsamplers_0_conv'
    way = dict(input='down', output='up')[side]
    return f'{way}_blocks_{block}_{("resnets", "attentions")[kind % 2]}_{layer}_{rest}'


def _factor(
    weight: Tensor, parts: Mapping[str, Tensor], stored: Mapping[str, Any], name: str
) -> float:
    """What ``up @ down`` of a layer is multiplied with at ``scale`` 1, if the parts fit."""
    if not {'down', 'up'} <= set(parts):
        raise ValueError(f'{name} has {sorted(parts)}, a LoRA has down and up')
    unknown = [key for key in ('use_dora', 'alpha_pattern', 'lora_bias') if stored.get(key)]
    if unknown or stored.get('peft_type', 'LORA') != 'LORA':
        raise ValueError(f'{unknown or stored["peft_type"]} of its adapter cannot be merged')
    down, up = parts['down'], parts['up']
    rank = len(down)
    alpha = float(parts['alpha']) if 'alpha' in parts else stored.get('lora_alpha', rank)
    if up.numel() != len(up) * rank:
        raise ValueError(f'{name} has parts of {tuple(down.shape)} and {tuple(up.shape)}')
    made_for = (len(up), down.numel() // rank)
    if made_for != (len(weight), weight.numel() // len(weight)):
        raise ValueError(
            f'{name} is {tuple(weight.shape)}, the LoRA is for {made_for}: it was made for another '
            'model'
        )
    return alpha / (rank**0.5 if stored.get('use_rslora') else rank)
