# SPDX-License-Identifier: Apache-2.0
"""The benchmark with few steps and images."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import Finished, run_command

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'benchmark' / 'toybirds_resnet18.py'
# Changes that make a run on the embedded world as short as it can be: two prompts, each of one
# step, and trainings of two.
QUICK = [
    'custom_hooks.0.search.steps=1',
    'custom_hooks.0.search.prompts_per_class=1',
    'custom_hooks.0.search.images_per_prompt=1',
    'custom_hooks.0.search.num_inference_steps=2',
    'custom_hooks.0.search.holdout=2',
    'custom_hooks.0.synthesis.num_inference_steps=2',
    'custom_hooks.0.synthesis.batch_size=2',
    'custom_hooks.0.start=1',
    'custom_hooks.0.injection.mode=mix',
    'train_dataloader.dataset.size=24',
    'test_dataloader.dataset.size=16',
    'benchmark.steps=2',
]
BIRDS = [
    *QUICK,
    'benchmark.methods.real.dataset.size=8',
    "benchmark.methods.gap.search.init=['forest','ocean']",
    'benchmark.methods.gap.search.steps=1',
    'benchmark.methods.gap.search.images_per_prompt=1',
    'benchmark.methods.gap.synthesis.aim_images=1',
    'benchmark.evaluate.val.indices=[400,401,402,403]',
    'benchmark.evaluate.val_id.size=8',
    'benchmark.evaluate.test_shift.size=8',
]
DEPTH = [
    *QUICK,
    'custom_hooks.0.search.prompts_per_class=2',
    'custom_hooks.0.synthesis.aim_images=1',
    'benchmark.methods.real.dataset.size=8',
    'benchmark.evaluate.val.indices=[400,401,402]',
]


def run_benchmark(out: Path, *options: object, config: Path = CONFIG) -> Finished:
    """Run ``tools/benchmark.py`` in this process."""
    return run_command('benchmark', config, '--out', out, *options)
