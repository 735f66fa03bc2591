# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusions as people have them: a folder, a hub id, one file; in half precision alone."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmgap.compat import silence_empty_cast_warning
from mmgap.weights import load_pretrained, resolve, variants_in

# What names of dtypes a setting takes.
DTYPES = dict(dtype=('float32', 'bfloat16', 'float16', 'float64'), autocast=('bfloat16', 'float16'))
INDEX = 'model_index.json'
FILES = ('.safetensors', '.ckpt')
# What a task's pipeline is called in messages.
KINDS = dict(
    Inpaint='an inpainting pipeline',
    Img2Img='an image-to-image pipeline',
    ControlNet='a Stable Diffusion that takes a ControlNet',
    ControlNetImg2Img='a Stable Diffusion that takes a ControlNet',
)
# Parts that no generator uses, and that many people have not downloaded. The safety checker would
# also break the gradient, and can black images out.
UNUSED = ('safety_checker', 'feature_extractor', 'image_encoder')


def dtype_of(name: str, setting: str) -> torch.dtype:
    """The dtype that ``dtype`` or ``autocast`` names.

    Raises:
        ValueError: If it is none of those that the setting takes; lists them.
    """
    if name not in DTYPES[setting]:
        raise ValueError(f'{setting} must be one of {list(DTYPES[setting])}, got {name!r}')
    return getattr(torch, name)


def device_of(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: If there is none of this name here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch has no CUDA at all
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r} cannot be used: {reason}; take 'cpu' or leave it out for the best "
            'there is'
        ) from error
    return device


def is_file(model: str) -> bool:
    """Whether a model is one file of the original layout, as they are passed on.

    Raises:
        FileNotFoundError: If it is named like one, and is not there.
    """
    if not str(model).endswith(FILES):
        return False
    if not os.path.isfile(resolve(model)):
        raise FileNotFoundError(f'model={model!r}: there is no such file')
    return True


def is_xl(model: str, config: str | None = None) -> bool:
    """Whether a model is a Stable Diffusion XL; nothing but its index is read.

    Args:
        model: Folder, hub id or ``mmgap://NAME`` of a diffusers model, or a single file.
        config: For a single file, the model whose index holds for it.

    Raises:
        FileNotFoundError: If ``model`` is neither a folder, a file nor a hub id that can be loaded.
        ValueError: If what is there is not a diffusers model, or needs several text encoders and is
            no Stable Diffusion XL.
    """
    if not is_file(model):
        index = read_index(model)
    elif config is not None:
        index = read_index(config)
    elif not model.endswith('.safetensors'):
        raise ValueError(f'model={model!r} needs config=FOLDER, a diffusers model of its kind')
    else:
        try:
            with safe_open(resolve(model), framework='pt') as file:
                return any(key.startswith('conditioner.embedders.1.') for key in file.keys())
        except SafetensorError as error:
            raise ValueError(f'model={model!r} is damaged: {error}') from error
    if 'text_encoder_2' not in index:
        return False
    kinds = [index.get(name, [None])[-1] for name in ('text_encoder', 'text_encoder_2', 'unet')]
    base = ['CLIPTextModel', 'CLIPTextModelWithProjection', 'UNet2DConditionModel']
    if kinds != base or index.get('requires_aesthetics_score'):
        raise ValueError(
            f'model={model!r} ({index.get("_class_name")}) cannot be a generator; take a Stable '
            'Diffusion 1.x, 2.x or XL, and of XL the base model, not the refiner'
        )
    return True


def read_index(model: str) -> Mapping[str, Any]:
    """``model_index.json`` of a diffusers model.

    Raises:
        FileNotFoundError: If ``model`` is neither a folder nor a hub id that can be loaded.
        ValueError: If what is there is not a diffusers model.
    """
    from diffusers import DiffusionPipeline

    return load_pretrained(
        DiffusionPipeline.load_config, model, 'a diffusers model', 'diffusers', INDEX
    )


def load_pipeline(
    task: str,
    model: str,
    dtype: torch.dtype,
    variant: str | None = None,
    config: str | None = None,
    **parts: Any,
) -> Any:
    """Load a Stable Diffusion without its safety checker and its watermark.

    Args:
        task: One of :data:`KINDS`.
        model: Folder, hub id or ``mmgap://NAME``, or a file of the original layout.
        dtype: Dtype of the weights.
        variant: Which weights to take, where there are several or one with a name: ``'fp16'``.
        config: For a single file, the diffusers model whose configs and tokenizers hold for it.
        **parts: Parts of the pipeline that are there already.

    Raises:
        FileNotFoundError: If ``model`` is neither a folder, a file nor a hub id that can be loaded.
        ValueError: If what is there is not a diffusers model that can be a generator, is not of
            this kind, or has a VAE that cannot be float16.
    """
    import diffusers

    single, xl = is_file(model), is_xl(model, config)
    parts.update(dict(add_watermarker=False) if xl else dict(requires_safety_checker=False))
    kind = getattr(diffusers, f'StableDiffusion{"XL" * xl}{task}Pipeline')
    if single:
        taken = inspect.signature(kind.__init__).parameters
        parts.update({name: None for name in UNUSED if name in taken})
        pipeline = load_file(kind, model, KINDS[task], config, variant, dtype=dtype, **parts)
    elif config is not None:
        raise ValueError(f'config={config!r} is for a single file, model={model!r} has its own')
    else:
        index = read_index(model)
        parts.update({name: None for name in UNUSED if name in index})
        auto = dict(Inpaint='AutoPipelineForInpainting', Img2Img='AutoPipelineForImage2Image')
        load = getattr(diffusers, auto[task]) if task in auto else kind
        pipeline = load_pretrained(
            load.from_pretrained,
            model,
            KINDS[task],
            'diffusers',
            INDEX,
            dtype=dtype,
            variant=variant,
            **parts,
        )
    if xl and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        raise ValueError(
            f"the VAE of model={model!r} overflows in dtype='float16', and diffusers casts it to "
            "float32 and back in every call, which no gradient survives; take dtype='bfloat16', "
            "or dtype='float32' with autocast='bfloat16'"
        )
    if xl:
        silence_empty_cast_warning()
    return pipeline


def load_file(
    kind: Any, model: str, expected: str, config: str | None, variant: str | None, **settings: Any
) -> Any:
    """Load a pipeline, or a network of one, from a single file of the original layout.

    Args:
        kind: A class with ``from_single_file``.
        model: The file.
        expected: What it must be, for messages.
        config: The diffusers model whose configs hold for it; None leaves that to diffusers, which
            guesses and fetches them from the hub.
        variant: Must be None: a file has no variants.
        **settings: For ``from_single_file``.

    Raises:
        FileNotFoundError: If the configs cannot be loaded.
        ValueError: If the file is something else, or does not fit the configs.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if variant is not None:
        raise ValueError(f'variant={variant!r} is for a folder or hub id, {model!r} is one file')
    if config is not None:
        settings['config'] = resolve(config)
    wrong = (ValueError, TypeError, AttributeError, KeyError, RuntimeError, SafetensorError)
    try:
        loaded = kind.from_single_file(resolve(model), **settings)
    except OSError as error:
        raise FileNotFoundError(
            f'the configs and tokenizers of {model!r} cannot be loaded: {error}. Give '
            'config=FOLDER, a diffusers model of the same kind; its weights are not needed'
        ) from error
    except (*wrong, SingleFileComponentError) as error:
        raise ValueError(
            f'{model!r} is not {expected}, or not of the kind of config={config!r}: {error}'
        ) from error
    networks = getattr(loaded, 'components', {'it': loaded})
    for name, network in networks.items():
        if isinstance(network, torch.nn.Module) and any(p.is_meta for p in network.parameters()):
            raise ValueError(
                f'{model!r} lacks weights of {name} that config={config!r} says it has'
            )
    return loaded


def load_controlnet(controlnet: str | Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load a ControlNet of diffusers.

    Args:
        controlnet: Folder, hub id, ``mmgap://NAME`` or a single file, or
            ``dict(path=…, variant=…, config=…)``.
        dtype: Dtype of the weights.

    Raises:
        FileNotFoundError: If it is neither a complete folder, a file nor a hub id that can be
            loaded.
        ValueError: If what is there is no ControlNet.
    """
    from diffusers import ControlNetModel

    source = dict(path=controlnet) if isinstance(controlnet, str) else dict(controlnet)
    path, variant = source['path'], source.get('variant')
    if is_file(path):
        config = source.get('config')
        return load_file(ControlNetModel, path, 'a ControlNet', config, variant, dtype=dtype)
    place = resolve(path)
    try:
        kind = ControlNetModel.load_config(place).get('_class_name')
        if kind == 'ControlNetModel':  # diffusers itself would take a UNet, and fill it up
            return ControlNetModel.from_pretrained(place, dtype=dtype, variant=variant)
    except OSError as error:
        raise FileNotFoundError(
            f'controlnet={controlnet!r} is neither a complete diffusers folder nor a hub id that '
            f'can be loaded: {error}{variants_in(place, variant)}'
        ) from error
    raise ValueError(f'controlnet={controlnet!r} is a {kind}, not a ControlNetModel')
