# SPDX-License-Identifier: Apache-2.0
"""The benchmark tool with few steps and images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICK = [
    'custom_hooks.0.search.steps=2',
    'custom_hooks.0.search.prompts_per_class=2',
    'custom_hooks.0.search.images_per_prompt=1',
    'custom_hooks.0.search.holdout=2',
    'custom_hooks.0.synthesis.num_inference_steps=2',
    'custom_hooks.0.start=1',
    'train_dataloader.dataset.size=120',
    'test_dataloader.dataset.size=80',
    'benchmark.steps=4',
    'benchmark.methods.real.dataset.size=8',
    'benchmark.methods.gap.search.steps=2',
    'benchmark.methods.gap.synthesis.aim_images=1',
    'benchmark.evaluate.val.indices=[400,401,402,403]',
    'benchmark.evaluate.test_shift.size=8',
]


def run(
    out: Path, *options: str, config: str = 'gap_resnet18_toybirds'
) -> subprocess.CompletedProcess:
    config = f'configs/{config}.py'
    command = [sys.executable, 'tools/benchmark.py', config, '--out', str(out), *options]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='2'),
        timeout=400,
    )
