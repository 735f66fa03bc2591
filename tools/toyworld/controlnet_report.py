# SPDX-License-Identifier: Apache-2.0
"""Measures the packaged tiny ControlNet, and shows what it draws.

Writes ``OUT/controlnet.json`` and ``OUT/controlnet.png``:

- ``abs_rel``: mean of |read - true| / true over the known pixels of generated pictures, where
  ``read`` is what a depth model reads that was trained on *rendered* scenes of all times and
  weathers, and ``true`` is the condition, in metres; ``abs_rel_rendered`` is the same model's error
  on renderings of the same scenes, and ``abs_rel_scaled`` is the first with each picture's depth
  brought to the true median, since a ControlNet is shown no metres;
- ``place``, ``time``, ``weather``: share of generated pictures in which a classifier trained on
  rendered scenes names what the prompt says.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from common import FIRST_SEED, WEIGHTS, batches, draw_scenes, write_meta
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from PIL import Image
from probes import classify, scene_classifier, scene_labels
from report import all_scenes
from torch import Tensor, nn
from train_controlnet import draw

from mmgap.generators import InverseDepth
from mmgap.toyworld.renderer import Scene, caption


def depth_reader(number: int, steps: int) -> nn.Module:
    """The depth model of the config, trained on rendered scenes of all times and weathers."""
    from mmseg.structures import SegDataSample

    torch.manual_seed(13)
    init_default_scope('mmseg')
    root = Path(__file__).resolve().parents[2]
    model = MODELS.build(Config.fromfile(root / 'configs/gap_resnet18_toydepth.py').model)
    model.init_weights()
    images, depths = map(np.stack, zip(*map(draw, draw_scenes(number, 13, 0.0)), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    order = batches(number, 32, 13)
    for step in range(steps):
        index = next(order)
        shown, truth = images[index], depths[index].astype(np.float32)
        if step % 2:
            shown, truth = shown[:, :, ::-1].copy(), truth[:, :, ::-1].copy()
        samples = [
            SegDataSample(gt_depth_map=PixelData(data=torch.from_numpy(depth)[None]))
            for depth in truth
        ]
        loss, _ = model.parse_losses(model.loss(as_input(shown), samples))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f'depth model: step {step + 1}/{steps}, loss {loss.item():.3f}', flush=True)
    return model.eval()


def as_input(images: np.ndarray) -> Tensor:
    """``(N, 3, H, W)`` in [-1, 1] of ``(N, H, W, 3)`` uint8, as the preprocessor has it."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def read(model: nn.Module, images: np.ndarray) -> Tensor:
    """``(N, 1, H, W)`` metres that a model reads off pictures."""
    meta = dict(
        ori_shape=images.shape[1:3], img_shape=images.shape[1:3], pad_shape=images.shape[1:3]
    )
    parts = [as_input(images[i : i + 64]) for i in range(0, len(images), 64)]
    return torch.cat([model.encode_decode(part, [meta] * len(part)) for part in parts])


def generate(folder: Path, prompts: list[str], control: Tensor, args: argparse.Namespace):
    """``(N, 64, 64, 3)`` uint8, by the stock pipeline."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    network = ControlNetModel.from_pretrained(
        folder / 'toybirds-controlnet', torch_dtype=torch.float32
    )
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        folder / 'toybirds-sd', controlnet=network, safety_checker=None, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(prompts), 36):
        numbers = range(start, min(start + 36, len(prompts)))
        drawn = pipe(
            prompts[start : numbers.stop],
            image=control[start : numbers.stop],
            height=64,
            width=64,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            controlnet_conditioning_scale=args.conditioning_scale,
            eta=1.0,
            generator=[torch.Generator().manual_seed(k) for k in numbers],
            output_type='np',
        ).images
        parts.append((drawn * 255 + 0.5).astype(np.uint8))
    return np.concatenate(parts)


def sheet(control: Tensor, rendered: np.ndarray, drawn: np.ndarray) -> Image.Image:
    """Columns of condition, rendering and generated picture, a few of each place."""
    shown = (control.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    rows = [np.concatenate(pictures[::10][:24], axis=1) for pictures in (shown, rendered, drawn)]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--weights', type=Path, default=WEIGHTS)
    parser.add_argument('--out', type=Path, default=Path('docs/toyworld'))
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--guidance-scale', type=float, default=5.0)
    parser.add_argument('--conditioning-scale', type=float, default=1.5, help='as ToyDepth draws')
    parser.add_argument('--reader-scenes', type=int, default=8000, help='it is trained on')
    parser.add_argument('--reader-steps', type=int, default=2400)
    args = parser.parse_args()

    # Other scenes than those of any split and of any training.
    scenes = [
        Scene(s.bird, s.place, s.time, s.weather, FIRST_SEED - 10_000 - i)
        for i, s in enumerate(all_scenes(1))
        if not s.is_backdrop
    ]
    rendered, depths = map(np.stack, zip(*map(draw, scenes), strict=True))
    truth = torch.from_numpy(depths.astype(np.float32))[:, None]
    control = InverseDepth()(truth)
    drawn = generate(args.weights, [caption(s) for s in scenes], control, args)

    net = scene_classifier(args.weights / 'toybirds-resnet18.safetensors')
    right = classify(net, drawn) == np.array([scene_labels(s) for s in scenes])
    model = depth_reader(args.reader_scenes, args.reader_steps)
    result = dict(zip(('place', 'time', 'weather'), right.mean(0).round(4).tolist(), strict=True))
    found, known = read(model, drawn), truth > 0
    scale = torch.stack(
        [t[k].median() / f[k].median() for t, f, k in zip(truth, found, known, strict=True)]
    )
    for name, depth in (
        ('abs_rel', found),
        ('abs_rel_scaled', found * scale.view(-1, 1, 1, 1)),
        ('abs_rel_rendered', read(model, rendered)),
    ):
        error = (depth - truth).abs() / truth.clamp(min=1e-6)
        values = [float(e[k].mean()) for e, k in zip(error, known, strict=True)]
        result[name] = round(float(np.mean(values)), 4)
    result.update(pictures=len(scenes), steps=args.steps, guidance_scale=args.guidance_scale)
    result['conditioning_scale'] = args.conditioning_scale
    result.update(reader_scenes=args.reader_scenes, reader_steps=args.reader_steps)
    args.out.mkdir(parents=True, exist_ok=True)
    write_meta(args.out / 'controlnet.json', **result)
    temporary = args.out / 'controlnet.tmp.png'
    sheet(control, rendered, drawn).save(temporary)
    os.replace(temporary, args.out / 'controlnet.png')
    print(result)


if __name__ == '__main__':
    main()
