# SPDX-License-Identifier: Apache-2.0
"""The main job on the embedded world, shortened; the whole one is in README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmgap.pool import SamplePool
from mmgap.targets import TargetModel

ROOT = Path(__file__).parents[1]


def test_the_loop_closes_on_the_embedded_world(tmp_path):
    config = Config.fromfile(ROOT / 'configs' / 'ap_resnet18_toybirds.py')
    config.work_dir = str(tmp_path)
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.train_cfg.max_epochs = 2
    config.test_dataloader.dataset.size = 120
    hook = config.custom_hooks[0]
    hook.update(start=1, budget=32)
    hook.search.update(prompts_per_class=1, steps=6, images_per_prompt=2, holdout=4)
    hook.synthesis.num_inference_steps = 5
    runner = Runner.from_cfg(config)
    runner.train()
    summary = json.loads((tmp_path / 'gap' / 'summary.json').read_text())
    before = summary['before']
    assert before['worst_group'] < 0.35, 'the base model does not fall for the shortcut'
    assert before['adjusted'] > 0.9
    prompts = summary['rounds'][0]['prompts']
    losses = [(p['target_loss_before'], p['target_loss_after']) for p in prompts]
    assert sum(after for _, after in losses) > sum(before for before, _ in losses)
    pool = SamplePool(tmp_path / 'gap' / 'pool')
    assert len(pool) == 32 and summary['versions']['toyworld']
    images = [s.target_loss_image for s in pool.samples]
    sources = [s.target_loss_source for s in pool.samples]
    assert sum(images) > sum(sources), 'the target does not find the images harder'
    # What an epoch does on the test data is luck; on these images they must have helped.
    target = TargetModel.from_pipeline(runner.model, config.test_dataloader.dataset.pipeline)
    pictures = np.stack([np.array(Image.open(pool.path(sample))) for sample in pool.samples])
    labels = torch.tensor([sample.label for sample in pool.samples])
    with torch.no_grad(), target.frozen():
        now = target(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255, labels).loss
    assert float(now.mean()) < 0.5 * sum(images) / len(images)


def test_packaged_weights_are_small():
    folder = ROOT / 'mmgap' / 'toyworld' / 'weights'
    total = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    assert total <= 32e6


def test_unknown_packaged_weights():
    from mmgap.weights import resolve

    with pytest.raises(FileNotFoundError, match='mmgap://toybirds-resnet18'):
        resolve('mmgap://toybirds-resnet19')
