# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.support.miniature import draw_waterbirds
from tests.support.processes import finish, start, torchrun
from tests.support.small_config import small_config


@pytest.mark.slow  # 80 s: seven processes, which import everything
def test_two_processes_train_with_what_one_finds(tmp_path, tiny_sd, on_cpu):
    """Both search against the same weights, before the first epoch; then DDP trains on one pool."""
    data = draw_waterbirds(tmp_path / 'data', per_group=4)
    for name in ('one', 'two'):
        config = small_config(data, tiny_sd, tmp_path / name)
        config.train_cfg.max_epochs = 2
        refit = dict(mode='refit', steps=3, batch_size=6)
        config.custom_hooks[0].update(start=0, rounds=1, budget=9, injection=refit)
        config.dump(tmp_path / f'{name}.py')
    finish(start(tmp_path / 'one.py'))
    done = torchrun('tools/train.py', str(tmp_path / 'two.py'), '--launcher', 'pytorch')
    assert done.returncode == 0, done.stdout[-6000:]
    gaps = [tmp_path / name / 'gap' for name in ('one', 'two')]
    prompts = sorted((gaps[0] / 'prompts').glob('*.safetensors'))
    assert len(prompts) == 2
    for file in prompts:
        one, two = load_file(file), load_file(gaps[1] / 'prompts' / file.name)
        for name, embeddings in one.items():
            np.testing.assert_allclose(two[name], embeddings, atol=1e-4)
    files = sorted((gaps[0] / 'pool' / 'images').iterdir())
    assert len(files) == 9
    pixels = [
        np.stack([np.array(Image.open(gap / 'pool' / 'images' / f.name)) for f in files])
        for gap in gaps
    ]
    assert (np.abs(pixels[0].astype(int) - pixels[1]) <= 1).mean() >= 0.999
    summaries = [json.loads((gap / 'summary.json').read_text()) for gap in gaps]
    assert summaries[1]['before'] == summaries[0]['before']
    assert summaries[1]['after']['groups'].keys() == summaries[0]['after']['groups'].keys()
    assert summaries[1]['images'] == 9
    assert summaries[1]['injection']['refit']['steps'] == 3
    # Stopped after the first epoch, with a refit, and gone on with: as if nothing had happened.
    resumed = tmp_path / 'resumed'
    command = ('tools/train.py', str(tmp_path / 'two.py'), '--launcher', 'pytorch')
    command = (*command, '--work-dir', str(resumed))
    done = torchrun(*command, '--cfg-options', 'train_cfg.max_epochs=1')
    assert done.returncode == 0, done.stdout[-6000:]
    done = torchrun(*command, '--resume')
    assert done.returncode == 0, done.stdout[-6000:]
    assert 'resumed epoch: 1' in done.stdout
    again = json.loads((resumed / 'gap' / 'summary.json').read_text())
    assert again['after'] == summaries[1]['after'] and len(again['rounds']) == 1
    # A refit of the whole network goes through DDP; images that are steered and selected.
    whole = [
        *(*command[:-1], str(tmp_path / 'whole'), '--cfg-options', 'train_cfg.max_epochs=1'),
        'custom_hooks.0.injection.layers=all',
        'custom_hooks.0.synthesis.overdraw=2',
        'custom_hooks.0.synthesis.guidance.every=1',
    ]
    done = torchrun(*whole)
    assert done.returncode == 0, done.stdout[-6000:]
    summary = json.loads((tmp_path / 'whole' / 'gap' / 'summary.json').read_text())
    assert summary['injection']['refit']['steps'] == 3
    (made,) = summary['rounds']
    assert (made['images'], made['unselected'], made['dropped']) == (9, 9, 0)
    assert made['evaluations'] > 0
