# SPDX-License-Identifier: Apache-2.0
"""Search prompts against a model, with the settings of the config's GAPHook."""

from __future__ import annotations

import argparse
import os.path as osp
import time
from pathlib import Path

from mmengine import dist
from mmengine.logging import MMLogger

from mmgap.compat import start_processes
from mmgap.configs import Changes, read_config, work_dir_of
from mmgap.files import write_json
from mmgap.loop import Loop, environment
from mmgap.loop.method import describe_method
from mmgap.loop.report import effect
from mmgap.prompts import PromptBank


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file with a GAPHook in custom_hooks, or the name of a shipped one'
    )
    parser.add_argument(
        '--checkpoint', help="weights of the model; by default the config's load_from or init_cfg"
    )
    parser.add_argument(
        '--out',
        help='folder for the prompts; the same command goes on from what is there '
        '(default: WORK_DIR/prompts)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Changes, help='override settings: key=value …'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    return parser.parse_args()


def main() -> None:
    """Search, save the prompts, and say what they do to the model."""
    args = parse_args()
    config = read_config(args.config, args.cfg_options)
    checkpoint = args.checkpoint
    if checkpoint is not None and '://' not in checkpoint and not osp.isfile(checkpoint):
        raise SystemExit(f'--checkpoint {checkpoint!r} does not exist')
    start_processes(args.launcher, config)
    began = time.monotonic()
    loop = Loop.from_config(config)
    out = Path(args.out or osp.join(work_dir_of(config), 'prompts'))
    out.mkdir(parents=True, exist_ok=True)
    logger = MMLogger.get_instance('mmgap', log_file=str(out / 'search.log'), log_level='INFO')
    method = describe_method(loop.settings)
    logger.info(f'[gap] {method}')
    target = loop.target(checkpoint)
    if checkpoint is None and config.get('load_from') is None:
        logger.warning('[gap] no --checkpoint: the search is against the untrained model')
    search = loop.prompt_search(target)
    prompts = loop.initial_prompts(search)
    others = {path.stem for path in PromptBank(out).paths()} - {prompt.id for prompt in prompts}
    if others:
        logger.warning(f'[gap] {out} also holds prompts of another search: {sorted(others)}')
    # In a folder of its own: `generate` takes every safetensors file of OUT for a prompt.
    state = out / 'search' / 'checkpoint.safetensors'
    found = search.run(prompts, checkpoint=state, bank=PromptBank(out))
    if not dist.is_main_process():
        return
    rows = [result.summary(loop.sources.classes) for result in found]
    for row in rows:
        logger.info(f'[gap] {row["id"]}: {effect(row)}')
    write_json(
        out / 'summary.json',
        dict(
            config=args.config,
            method=method,
            checkpoint=checkpoint,
            prompts=rows,
            seed=loop.seed,
            seconds=time.monotonic() - began,
            versions=environment(loop.sources.dataset.metainfo),
        ),
    )
    logger.info(f'[gap] {len(rows)} prompts in {out}')
