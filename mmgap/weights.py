# SPDX-License-Identifier: Apache-2.0
"""Where weights come from: the package itself (``mmgap://NAME``), a folder, or the hub.

``mmgap://PATH.safetensors`` is any safetensors file, which MMEngine cannot read by itself.
``timm://NAME`` are weights of timm's ViT and ResNet models on Hugging Face, in the names of
MMPretrain; ``timm-mmseg://NAME`` in those of MMSegmentation. ``package://NAME/PATH`` is a file of
an installed package.

Importing this module teaches MMEngine's ``CheckpointLoader`` these prefixes, so that
``init_cfg=dict(type='Pretrained', checkpoint='mmgap://toybirds-resnet18')`` works, and to say what
to do where weights cannot be fetched.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmgap.configs import name_of

PREFIX = 'mmgap://'
PACKAGE = 'package://'
FOLDER = Path(__file__).parent / 'toyworld' / 'weights'
TIMM = ('timm://', 'timm-mmseg://')
# How timm's names of parameters become those of MMPretrain, and for some of MMSegmentation.
VIT = {
    r'^patch_embed\.proj\.': 'patch_embed.projection.',
    r'^blocks\.': 'layers.',
    r'(layers\.\d+)\.norm(\d)\.': r'\1.ln\2.',
    r'\.mlp\.fc1\.': '.ffn.layers.0.0.',
    r'\.mlp\.fc2\.': '.ffn.layers.1.',
    r'^norm\.': 'ln1.',
}
VIT_MMSEG = {
    r'\.attn\.qkv\.': '.attn.attn.in_proj_',
    r'\.attn\.proj\.': '.attn.attn.out_proj.',
}
DEEP_STEM = {
    r'^conv1\.0\.': 'stem.0.conv.',
    r'^conv1\.1\.': 'stem.0.bn.',
    r'^conv1\.3\.': 'stem.1.conv.',
    r'^conv1\.4\.': 'stem.1.bn.',
    r'^conv1\.6\.': 'stem.2.conv.',
    r'^bn1\.': 'stem.2.bn.',
}
DEEP_STEM_MMSEG = {r'^conv1\.(\d)\.': r'stem.\1.', r'^bn1\.': 'stem.7.'}
HEADS = ('head.', 'head_dist.', 'fc.', 'fc_norm.')
# Weights that both a host of OpenMMLab or PyTorch and Hugging Face have, by what URLs end with.
ELSEWHERE = {
    'resnet50-0676ba61.pth': 'timm://resnet50.tv_in1k',
    'resnet50-19c8e357.pth': 'timm://resnet50.tv_in1k',
    'resnet50_v1c-2cccc1ad.pth': 'timm-mmseg://resnet50c.gluon_in1k',
    'jx_vit_base_p16_224-80ecf9dd.pth': 'timm-mmseg://vit_base_patch16_224.orig_in21k_ft_in1k',
}


def resolve(name: str | os.PathLike[str]) -> str:
    """Turn ``mmgap://…`` into a path; others come back unchanged, as text.

    Raises:
        FileNotFoundError: When no packaged weights have that name; lists those there are. Or when
            there is no such file.
    """
    name = os.fspath(name)
    if not name.startswith(PREFIX):
        return name
    stem = name[len(PREFIX) :]
    for path in (FOLDER / stem, FOLDER / f'{stem}.safetensors'):
        if stem and path.exists():
            return str(path)
    if stem.endswith('.safetensors'):
        if not Path(stem).is_file():
            raise FileNotFoundError(f'{name!r}: there is no file {stem}')
        return stem
    known = sorted(PREFIX + p.stem for p in FOLDER.glob('*') if p.is_dir() or p.suffix != '.json')
    raise FileNotFoundError(f'{name!r} names no packaged weights; there are {known}')


def load_pretrained(
    load: Callable[..., Any], model: str, kind: str, library: str, index: str, **settings: Any
) -> Any:
    """Load a model of diffusers or transformers.

    Args:
        load: A ``from_pretrained``.
        model: Folder, hub id or ``mmgap://NAME``.
        kind: What it must be, for messages: "an inpainting pipeline".
        library: Whose ``load`` it is, for messages.
        index: Name of the file that every folder of such a model has.
        **settings: For ``load``.

    Raises:
        FileNotFoundError: If ``model`` is neither a complete folder nor a hub id that can be
            loaded.
        ValueError: If what is there is not of this library, not of this kind, or would run code.
    """
    path = resolve(model)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, index)):
            files = sorted(name for name in os.listdir(path) if name.endswith('.safetensors'))
            raise ValueError(
                f'model={model!r} has no {index}: it is no {library} model'
                + (f'. It holds {files}: for a model in one file give that file' if files else '')
            )
    elif os.path.isfile(path) or os.path.isabs(path) or path.count('/') != 1:
        raise FileNotFoundError(f'model={model!r} is neither a folder nor a hub id (OWNER/NAME)')
    variant = settings.get('variant')
    if variant is not None and os.path.isdir(path) and not _has_variant(path, variant):
        raise FileNotFoundError(f'model={model!r} has no weights of variant={variant!r}')
    try:
        return load(path, **settings)
    except (OSError, SafetensorError, UnpicklingError) as error:
        if _in_pickle(error):
            raise ValueError(
                f'model={model!r} has a pickle (.bin) that is damaged or would run code, which is '
                f'not done; take its .safetensors: {error}'
            ) from error
        others = variants_in(path, variant) if 'variant' in settings else ''
        raise FileNotFoundError(
            f'model={model!r} is neither a complete {library} folder nor a hub id that can be '
            f'loaded: {error}{others}'
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'model={model!r} is not {kind}: {error}') from error


def _in_pickle(error: BaseException | None) -> bool:
    """Whether an error comes from a file that PyTorch would not read as weights alone."""
    while error is not None:
        if isinstance(error, UnpicklingError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_variant(path: str, variant: str) -> bool:
    return any(p.suffix in ('.safetensors', '.bin') for p in Path(path).rglob(f'*.{variant}*.*'))


def variants_in(path: str, variant: str | None) -> str:
    """What to say of the variants of a model where another one was asked for; '' if nothing."""
    if not os.path.isdir(path):
        return '' if variant else ". If the hub has half precision alone, set variant='fp16'"
    names = [p.stem for p in Path(path).rglob('*.*.safetensors')]
    found = sorted({re.sub(r'-\d+-of-\d+$', '', name.partition('.')[2]) for name in names})
    if not found or variant in found:
        return ''
    return f'. Its weights are of variant {found}: set variant={found[0]!r}'


@CheckpointLoader.register_scheme(prefixes=PREFIX, force=True)
def load_from_mmgap(filename: str, map_location: str | None = None) -> dict[str, torch.Tensor]:
    """Load safetensors weights as a float32 state dict."""
    state = load_file(resolve(filename), device=str(map_location or 'cpu'))
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


@CheckpointLoader.register_scheme(prefixes=PACKAGE, force=True)
def load_from_package(filename: str, map_location: str | None = None) -> Any:
    """Load the weights that an installed package carries.

    Raises:
        FileNotFoundError: If the package is not installed, or has no such file.
    """
    package, _, path = filename.removeprefix(PACKAGE).partition('/')
    found = importlib.util.find_spec(package)
    if found is None:
        raise FileNotFoundError(f'{filename!r}: package {package} is not installed')
    for folder in found.submodule_search_locations or ():
        if (Path(folder) / path).is_file():
            return torch.load(Path(folder) / path, map_location=map_location, weights_only=True)
    raise FileNotFoundError(f'{filename!r}: package {package} has no file {path}')


@CheckpointLoader.register_scheme(prefixes=TIMM, force=True)
def load_from_timm(filename: str, map_location: str | None = None) -> dict[str, torch.Tensor]:
    """Load weights of timm's ViT and ResNet models in the names of MMPretrain or MMSegmentation.

    Args:
        filename: ``timm://NAME``, the name with its tag (``resnet50.tv_in1k``) or a file in that
            layout; ``timm-mmseg://NAME`` for the names of MMSegmentation.
        map_location: Where tensors go.

    Returns:
        The state dict without the head.

    Raises:
        FileNotFoundError: If there are none, or Hugging Face cannot be reached.
        ValueError: If the model is neither a plain ViT nor a ResNet.
    """
    scheme, _, name = filename.partition('://')
    state = load_file(_timm_file(filename, name), device=str(map_location or 'cpu'))
    state = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    mmseg = scheme == 'timm-mmseg'
    if 'blocks.0.attn.qkv.weight' in state:
        rules = VIT | (VIT_MMSEG if mmseg else {})
        known = r'(cls_token|pos_embed|patch_embed\.projection|layers\.\d+\.(ln|attn|ffn)|ln1\.)'
    elif 'layer1.0.conv1.weight' in state:
        deep = DEEP_STEM_MMSEG if mmseg else DEEP_STEM
        rules = deep if 'conv1.0.weight' in state else {}
        known = r'(conv1|bn1|stem\.\d(\.(conv|bn))?|layer\d\.\d+\.(conv\d|bn\d|downsample\.[01]))\.'
    else:
        rules, known = {}, r'$'
    renamed = {}
    for key, value in state.items():
        for pattern, new in rules.items():
            key = re.sub(pattern, new, key)
        renamed[key] = value
    strange = [key for key in renamed if not re.match(known, key)]
    if strange:
        raise ValueError(
            f'{filename!r}: only plain ViT and ResNet models of timm are known in the names of '
            f'OpenMMLab; this one has {strange[:3]}'
        )
    return renamed


def _timm_file(filename: str, name: str) -> str:
    if name.endswith('.safetensors'):
        if not Path(name).is_file():
            raise FileNotFoundError(f'{filename!r}: there is no file {name}')
        return name
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(f'timm/{name}', 'model.safetensors')
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f'weights {filename!r} cannot be fetched from Hugging Face (huggingface.co, or what '
            f'HF_ENDPOINT says): {error}. Get model.safetensors of timm/{name} elsewhere and give '
            f'{filename.partition("://")[0]}://PATH.safetensors, or the whole model by load_from'
        ) from error


def url_of(filename: str) -> str:
    """The URL behind a name like ``torchvision://resnet50``; other strings come back unchanged."""
    prefix, _, name = filename.partition('://')
    known = {
        'torchvision': mmengine_checkpoint.get_torchvision_models,
        'modelzoo': mmengine_checkpoint.get_torchvision_models,
        'open-mmlab': mmengine_checkpoint.get_external_models,
        'openmmlab': mmengine_checkpoint.get_external_models,
        'mmcls': mmengine_checkpoint.get_mmcls_models,
    }
    return known[prefix]().get(name, filename) if prefix in known else filename


def saying_where_else(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of MMEngine's that says, where it fails to fetch, which host did and what to do."""

    @functools.wraps(load)
    def wrapped(filename: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(filename, *args, **kwargs)
        except (OSError, HTTPException, UnpicklingError, EOFError) as error:
            url = url_of(filename)
            name = Path(urlparse(url).path).name
            cached = Path(torch.hub.get_dir()) / 'checkpoints' / name
            what = f'weights {filename!r} cannot be fetched: host {urlparse(url).hostname} failed'
            if isinstance(error, (UnpicklingError, EOFError)):
                what = f'{cached}, fetched as {filename!r}, is no checkpoint: delete it'
            other = ELSEWHERE.get(name)
            raise FileNotFoundError(
                f'{what} ({error}). '
                + (f'Hugging Face has them too: checkpoint={other!r}. ' if other else '')
                + f'Or get {name} elsewhere, from a colleague or another version of the model zoo, '
                f'and put it at {cached}; or name a file as checkpoint in init_cfg, or that of a '
                'whole model as load_from'
            ) from error

    return wrapped


for _prefix in (
    'http://',
    'https://',
    'torchvision://',
    'modelzoo://',
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
):
    CheckpointLoader.register_scheme(
        _prefix, saying_where_else(CheckpointLoader._get_checkpoint_loader(_prefix)), force=True
    )


def without_pretrained(settings: Any) -> Any:
    """The same settings without weights to load."""
    if isinstance(settings, dict):
        pretrained = is_pretrained(settings.get('init_cfg'))
        kept = {k: without_pretrained(v) for k, v in settings.items() if k != 'pretrained'}
        return type(settings)({**kept, **({'init_cfg': None} if pretrained else {})})
    if isinstance(settings, list):
        return [without_pretrained(part) for part in settings]
    return settings


def is_pretrained(settings: Any) -> bool:
    """Whether an ``init_cfg`` loads weights."""
    if not isinstance(settings, Mapping):
        return False
    return name_of(settings.get('type')) in ('Pretrained', 'PretrainedInit')
