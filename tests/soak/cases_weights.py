# SPDX-License-Identifier: Apache-2.0
"""Weights and prompts: missing, damaged, of something else, or not numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.soak.stage import Stage, case
from tests.support.hostile import Hostile


@case('a checkpoint that does not exist', 'search')
def checkpoint_missing(stage: Stage) -> None:
    path = stage.folder / 'last.pth'
    stage.refuses('search', stage.config(), '--checkpoint', path, says=['--checkpoint', path])


@case('a checkpoint that does not exist', 'check')
def checkpoint_missing_check(stage: Stage) -> None:
    path = stage.folder / 'last.pth'
    stage.checks_wrong(stage.config(), '--checkpoint', path, says=[path])


@case('a checkpoint of another model', 'search')
def checkpoint_other(stage: Stage) -> None:
    path = checkpoint(stage, {'linear.weight': torch.zeros(3, 4)})
    says = [path, 'linear.weight', 'ImageClassifier', 'config']
    stage.refuses('search', stage.config(), '--checkpoint', path, says=says)


@case('a checkpoint of another model', 'test')
def checkpoint_other_test(stage: Stage) -> None:
    path = checkpoint(stage, {'linear.weight': torch.zeros(3, 4)})
    stage.refuses('test', stage.config(), path, says=[path, '0%', 'another model'])


@case('a checkpoint of another model as load_from', 'train')
def checkpoint_other_train(stage: Stage) -> None:
    path = checkpoint(stage, {'linear.weight': torch.zeros(3, 4)})
    stage.refuses('train', stage.config(load_from=str(path)), says=[path, 'another model'])


@case('a truncated checkpoint', 'test')
def checkpoint_cut(stage: Stage) -> None:
    path = checkpoint(stage, {'linear.weight': torch.zeros(300, 400)})
    path.write_bytes(path.read_bytes()[:2000])
    stage.refuses('test', stage.config(), path, says=[path])


@case('a truncated checkpoint', 'train --resume')
def checkpoint_cut_resume(stage: Stage) -> None:
    work = stage.folder / 'run'
    work.mkdir()
    (work / 'epoch_1.pth').write_bytes(b'PK\x03\x04' + bytes(99))
    (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))
    stage.refuses('train', stage.config(), '--resume', says=[work / 'epoch_1.pth'])


@case('a work folder whose last_checkpoint names a file that is gone', 'train --resume')
def checkpoint_gone(stage: Stage) -> None:
    work = stage.folder / 'run'
    work.mkdir()
    (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))
    says = [work / 'last_checkpoint', 'does not exist', 'starts anew']
    stage.accepts('train', stage.config(), '--resume', says=says)


@case('a checkpoint that runs code when it is unpickled', 'search')
def checkpoint_hostile(stage: Stage) -> None:
    path, made = stage.folder / 'last.pth', stage.folder / 'made'
    torch.save(dict(state_dict=Hostile(made)), path)
    stage.refuses('search', stage.config(), '--checkpoint', path, says=[path])
    assert not made.exists()


@case('NaN in the weights of the model', 'search')
def model_nan(stage: Stage) -> None:
    config = stage.config()
    state = torch.load(stage.shared.checkpoint)['state_dict']
    state['head.fc.weight'][:] = float('nan')
    path = checkpoint(stage, state)
    stage.refuses('search', config, '--checkpoint', path, says=['loss', 'nan'])


@case('NaN in the weights of the generator', 'train')
def generator_nan(stage: Stage) -> None:
    folder = stage.copy(stage.shared.sd, 'sd')
    path = folder / 'unet' / 'diffusion_pytorch_model.safetensors'
    state = load_file(path)
    state['conv_in.weight'][:] = float('nan')
    save_file(state, path)
    stage.refuses('train', generator(stage, folder), says=['loss', 'nan'])


@case('a generator whose UNet is truncated', 'train')
def generator_cut(stage: Stage) -> None:
    folder = stage.copy(stage.shared.sd, 'sd')
    path = folder / 'unet' / 'diffusion_pytorch_model.safetensors'
    path.write_bytes(path.read_bytes()[:9999])
    stage.refuses('train', generator(stage, folder), says=[folder])


@case('a generator without its UNet', 'check')
def generator_part(stage: Stage) -> None:
    folder = stage.copy(stage.shared.sd, 'sd')
    for path in (folder / 'unet').iterdir():
        path.unlink()
    stage.checks_wrong(generator(stage, folder), says=[folder, 'unet'])


@case('a generator folder that is empty', 'train')
def generator_empty(stage: Stage) -> None:
    folder = stage.folder / 'sd'
    folder.mkdir()
    stage.refuses('train', generator(stage, folder), says=[folder, 'model_index.json'])


@case('a hub id that is not in the cache, without a network', 'train')
def generator_offline(stage: Stage) -> None:
    config = generator(stage, 'stable-diffusion-v1-5/stable-diffusion-v1-5')
    stage.refuses('train', config, says=['stable-diffusion-v1-5/stable-diffusion-v1-5', 'folder'])


@case('a packaged model that there is not', 'train')
def generator_packaged(stage: Stage) -> None:
    config = generator(stage, 'mmgap://toybird-sd')
    stage.refuses('train', config, says=['mmgap://toybird-sd', 'toybirds-sd'])


@case('a tokenizer that is not JSON', 'train')
def tokenizer_damaged(stage: Stage) -> None:
    folder = stage.copy(stage.shared.sd, 'sd')
    for path in (folder / 'tokenizer').glob('*.json'):
        path.write_text('{')
    stage.refuses('train', generator(stage, folder), says=[folder])


@case('LoRA weights that do not exist', 'train')
def lora_missing(stage: Stage) -> None:
    config = stage.config(hook__generator__lora=str(stage.folder / 'lora.safetensors'))
    stage.refuses('train', config, says=[stage.folder / 'lora.safetensors'])


@case('a prompt of another text encoder', 'generate')
def prompt_width(stage: Stage) -> None:
    path = stage.folder / 'prompt.safetensors'
    save_file({'<p>': torch.zeros(2, 768)}, path)
    draw(stage, '--prompts', path, says=[path, '768', '32'])


@case('a damaged prompt file', 'generate')
def prompt_damaged(stage: Stage) -> None:
    path = stage.folder / 'prompt.safetensors'
    path.write_bytes(b'\x99' * 40)
    draw(stage, '--prompts', path, says=[path, 'cannot be read'])


@case('a prompt of NaN', 'generate')
def prompt_nan(stage: Stage) -> None:
    path = stage.folder / 'prompt.safetensors'
    save_file({'<p>': torch.full((2, 32), float('nan'))}, path)
    draw(stage, '--prompts', path, says=["prompt 'prompt'", 'NaN'])


@case('a prompt whose provenance is not JSON', 'generate')
def prompt_provenance(stage: Stage) -> None:
    path = stage.folder / 'prompt.safetensors'
    save_file({'<p>': torch.zeros(2, 32)}, path)
    path.with_suffix('.json').write_text('{"id": ')
    draw(stage, '--prompts', path, says=[path.with_suffix('.json'), 'JSON'])


@case('a prompt whose label is none of the classes', 'generate')
def prompt_label(stage: Stage) -> None:
    path = stage.folder / 'prompt.safetensors'
    save_file({'<p>': torch.zeros(2, 32)}, path)
    path.with_suffix('.json').write_text(json.dumps(dict(id='p', label=9)))
    says = ['no prompt for class', 'landbird']
    draw(stage, '--prompts', path, says=says, hook__synthesis__cross=False)


@case('a prompt file that runs code when it is unpickled', 'generate')
def prompt_hostile(stage: Stage) -> None:
    path, made = stage.folder / 'prompt.bin', stage.folder / 'made'
    torch.save(Hostile(made), path)
    draw(stage, '--prompts', path, says=[path, 'cannot be read'])
    assert not made.exists()


@case('a folder without prompts', 'generate')
def prompts_none(stage: Stage) -> None:
    folder = stage.folder / 'prompts'
    folder.mkdir()
    draw(stage, '--prompts', folder, says=[folder, 'no prompt files'])


# What the cases share


def checkpoint(stage: Stage, state: dict) -> Path:
    """A checkpoint with these weights."""
    path = stage.folder / 'last.pth'
    torch.save(dict(state_dict=state, meta={}), path)
    return path


def generator(stage: Stage, model: object) -> Path:
    """A config with another generator."""
    return stage.config(hook__generator__model=str(model))


def draw(stage: Stage, *options: object, says: list, **changes: object) -> None:
    """``mmgap generate`` that must not draw, nor make a pool."""
    pool = stage.folder / 'pool'
    config = stage.config(**changes)
    stage.refuses('generate', config, *options, '--num', 1, '--out', pool, says=says)
    assert not (pool / 'manifest.jsonl').exists()
