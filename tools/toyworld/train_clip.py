# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny CLIP, an ``open_clip`` model, on the same captions as the tiny Stable Diffusion.

Writes ``OUT/toybirds-clip``, a folder that open_clip reads as it stands:
``open_clip.create_model('local-dir:OUT/toybirds-clip')``, and ``get_tokenizer`` likewise.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from common import Progress, autocast, batches, draw_scenes, parser, render_all, to_input
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPTokenizer

from mmgap.toyworld.renderer import caption
from mmgap.toyworld.tokenizer import CONTEXT_LENGTH, build_tokenizer


def config() -> dict:
    tokenizer = build_tokenizer()
    return {
        'embed_dim': 128,
        'vision_cfg': {
            'image_size': 64,
            'layers': 4,
            'width': 128,
            'head_width': 32,
            'patch_size': 8,
            'mlp_ratio': 3.0,
        },
        'text_cfg': {
            'context_length': CONTEXT_LENGTH,
            'vocab_size': len(tokenizer),
            'width': 128,
            'heads': 4,
            'layers': 2,
            'mlp_ratio': 3.0,
            'pool_type': 'eos',
            'pad_id': tokenizer.pad_token_id,
            'eos_id': tokenizer.eos_token_id,
        },
    }


def main() -> None:
    args = parser(__doc__, steps=320, batch=128, scenes=24000).parse_args()
    import open_clip

    torch.manual_seed(7)
    # The pictures that the diffusion model learned from: drawn once for both.
    scenes = draw_scenes(args.scenes, 3)
    images = render_all(scenes, args.cache / f'sd_{args.scenes}.npy')
    held_out = draw_scenes(400, 8)
    tokenizer, settings = build_tokenizer(), config()
    model = open_clip.model.CLIP(**settings).to(args.device)
    print(f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters', flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.steps, pct_start=0.1)

    def tokens(texts: list[str]) -> torch.Tensor:
        return tokenizer(
            texts, padding='max_length', truncation=True, return_tensors='pt'
        ).input_ids.to(args.device)

    report, order, rng = (
        Progress(args.steps),
        batches(len(scenes), args.batch, 7),
        np.random.default_rng(7),
    )
    target = torch.arange(args.batch, device=args.device)
    for step in range(1, args.steps + 1):
        index = next(order)
        with autocast(args.device):
            image = model.encode_image(to_input(images[index], args.device), normalize=True)
            text = model.encode_text(
                tokens([caption(scenes[i], rng) for i in index]), normalize=True
            )
        logits = model.logit_scale.exp() * image.float() @ text.float().t()
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.0)
        report(step, loss=loss)
    model.eval()
    texts = [caption(s) for s in held_out]
    with torch.no_grad():
        image = model.encode_image(to_input(render_all(held_out), args.device), normalize=True)
        text = model.encode_text(tokens(texts), normalize=True)
        best = (image @ text.t()).argmax(1).cpu()
    exact = np.mean([texts[int(k)] == texts[i] for i, k in enumerate(best)])
    place = np.mean(
        [held_out[int(k)].place == s.place for s, k in zip(held_out, best, strict=True)]
    )
    print(f'of 400 held-out captions the best is the right one: {exact:.3f}; place: {place:.3f}')
    save(args.out / 'toybirds-clip', model, tokenizer)


def save(folder: Path, model: torch.nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Write the folder, complete or not at all."""
    temporary = folder.with_name(f'.{folder.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save_pretrained(temporary)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, temporary / 'open_clip_model.safetensors', metadata={'format': 'pt'})
    settings = config()
    # Any name makes open_clip take the tokenizer of this folder.
    settings['text_cfg']['hf_tokenizer_name'] = folder.name
    half = [0.5, 0.5, 0.5]
    about = {'model_cfg': settings, 'preprocess_cfg': {'mean': half, 'std': half}}
    (temporary / 'open_clip_config.json').write_text(json.dumps(about, indent=2) + '\n')
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


if __name__ == '__main__':
    main()
