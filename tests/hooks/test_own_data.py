# SPDX-License-Identifier: Apache-2.0
"""A folder for each class, no masks, no groups, no code: whole images are redrawn and judged."""

from __future__ import annotations

import json

from mmengine.runner import Runner
from PIL import Image

from mmgap.pool import SamplePool
from mmgap.toyworld.renderer import Scene, render
from tests.support.small_config import small_config


def test_image_to_image_with_a_critic(tmp_path, tiny_sd):
    for split, count in (('train', 6), ('test', 3)):
        for name in ('landbird', 'waterbird'):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                scene = Scene(name, 'meadow', 'day', 'clear', seed=i)
                Image.fromarray(render(scene).image).save(folder / f'{i}.png')
    config = small_config(tmp_path / 'data', tiny_sd, tmp_path / 'work')
    for part in ('train', 'test'):
        data = config[f'{part}_dataloader'].dataset
        data.update(type='mmgap.MaskedFolders', data_root=str(tmp_path / 'data' / part))
        data.update(with_masks=False)
        data.pop('split')
    config.test_dataloader.dataset.pipeline[-1] = dict(type='PackInputs')
    config.test_evaluator = [dict(type='mmgap.MacroF1')]
    config.train_cfg.max_epochs = 2
    hook = config.custom_hooks[0]
    hook.update(rounds=1, budget=8)
    hook.search.update(prompts_per_class=1, steps=2)
    hook.generator = dict(
        type='mmgap.ImageToImageGenerator', model=str(tiny_sd), size=32, strength=0.6
    )
    clip = dict(model='mmgap://toybirds-clip')
    texts = ['a landbird in a meadow', 'a waterbird in a meadow']
    hook.critic = dict(type='mmgap.ClipCritic', clip=clip, texts=texts, margin=None, threshold=0.5)
    Runner.from_cfg(config).train()
    summary = json.loads((tmp_path / 'work' / 'gap' / 'summary.json').read_text())
    assert set(summary['after']['groups']) == {'landbird', 'waterbird'}
    samples = SamplePool(tmp_path / 'work' / 'gap' / 'pool').samples
    assert summary['images'] == sum(sample.kept for sample in samples) <= 8
    assert all(sample.kept == (sample.agreement >= 0.5) for sample in samples)
    # These models draw noise, which is rarely a bird of the class: some must have been refused,
    # and drawn again.
    assert len(samples) > 8 and {sample.critic is None for sample in samples} == {False}
