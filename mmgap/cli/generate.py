# SPDX-License-Identifier: Apache-2.0
"""Draw labelled images with prompts into a sample pool, as the config's GAPHook would."""

from __future__ import annotations

import argparse
import os.path as osp
import time
from pathlib import Path

from mmengine import dist

from mmgap.cli.logs import logged
from mmgap.compat import start_processes
from mmgap.configs import Changes, read_config
from mmgap.loop import Loop
from mmgap.loop.contact_sheet import picture_round, write_contact_sheet
from mmgap.pool import SamplePool
from mmgap.prompts import SoftPrompt, ids_of, load_prompts


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file with a GAPHook in custom_hooks, or the name of a shipped one'
    )
    parser.add_argument('--prompts', help='a prompt file or a folder of them')
    parser.add_argument(
        '--text', nargs='+', default=[], help='prompts in words, e.g. "in the forest" "at night"'
    )
    parser.add_argument('--num', type=int, required=True, help='number of images')
    parser.add_argument(
        '--out', required=True, help='the pool; the same command goes on from what is there'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='keep planned images of the pool also where they were drawn with another number of '
        'steps, or another scheduler or eta; its manifest says which',
    )
    parser.add_argument(
        '--checkpoint', help="weights of the model whose losses go into the pool's manifest"
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Changes, help='override settings: key=value …'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    args = parser.parse_args()
    if args.prompts is None and not args.text:
        parser.error('give --prompts, --text or both')
    if args.num < 1:
        parser.error(f'--num must be at least 1, got {args.num}')
    return args


def collect_prompts(loop: Loop, path: str | None, texts: list[str]) -> list[SoftPrompt]:
    """The prompts of ``path`` and those in words, each with an id of its own."""
    encoder = loop.generator.prompts
    prompts = load_prompts(path, encoder.width, classes=loop.sources.classes) if path else []
    for text, id in zip(texts, ids_of(texts, runs=True), strict=True):
        prompts.append(encoder.text_prompt(text, id, turn=len(prompts)))
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) < len(ids):
        raise SystemExit(f'prompts must have different ids, got {ids}')
    return prompts


def main() -> None:
    """Draw what the pool lacks, and a contact sheet of all of it."""
    args = parse_args()
    config = read_config(args.config, args.cfg_options)
    checkpoint = args.checkpoint
    if checkpoint is not None and '://' not in checkpoint and not osp.isfile(checkpoint):
        raise SystemExit(f'--checkpoint {checkpoint!r} does not exist')
    if args.prompts is not None and not osp.exists(args.prompts):
        raise SystemExit(f'--prompts {args.prompts!r} does not exist')
    out = Path(args.out)
    start_processes(args.launcher, config)
    pool = SamplePool(out)
    loop = Loop.from_config(config)
    prompts = collect_prompts(loop, args.prompts, args.text)
    target = loop.target(checkpoint) if checkpoint is not None else None
    with logged(out / 'generate.log') as logger:
        began = time.monotonic()
        drawn = loop.synthesize(prompts, args.num, pool, target, keep_drawn=args.resume)
        if not dist.is_main_process():
            return
        seconds = time.monotonic() - began
        logger.info(f'[gap] {drawn} images drawn in {seconds:.1f} s, {len(pool)} in {out}')
        pictures = picture_round(
            pool,
            loop.sources,
            loop.generator,
            found=(),
            num_inference_steps=loop.settings.synthesis.num_inference_steps,
            round=0,
        )
        write_contact_sheet(out / 'contact_sheet.png', pictures)
