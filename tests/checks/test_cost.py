# SPDX-License-Identifier: Apache-2.0
"""tools/measure_cost.py measures the same work in all of its cases."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs/gap_resnet18_toybirds.py')
SMALL = ['custom_hooks.0.search.batch_size=2', 'custom_hooks.0.synthesis.batch_size=2']


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import measure_cost

    return measure_cost


def arguments(tool, monkeypatch, out: Path, *options: str):
    command = ['measure_cost.py', CONFIG, '--out', str(out), *options, '--cfg-options', *SMALL]
    monkeypatch.setattr(sys, 'argv', command)
    return tool.parse_args()


def test_plain_loop_has_the_gradient_of_a_search_step(tool, monkeypatch, tmp_path):
    config = tool.load(arguments(tool, monkeypatch, tmp_path))
    generator = config.custom_hooks[0].generator
    generator.update(tool.FORMATS['float32'], gradient=dict())
    loop = tool.Case(config, stock=True).loop_step(1)
    generator.gradient = dict(checkpoint='blocks')
    step, other = (tool.Case(config).search_step(number) for number in (1, 0))
    assert len(loop) == len(step) == 2
    for a, b, c in zip(loop, step, other, strict=True):
        size = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * size)
        assert not torch.allclose(b, c, rtol=0, atol=1e-2 * size)  # each step has its sources


def test_random_weights_have_the_sizes_of_stable_diffusion(tool):
    with torch.device('meta'):
        pipeline = tool.random_pipeline()
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]  # as its model card's files have them


@pytest.mark.slow
def test_all_cases_and_going_on(tool, monkeypatch, tmp_path, capsys):
    options = ('--formats', 'float32', '--repeats', '1')
    arguments(tool, monkeypatch, tmp_path, '--cases', 'shortcut', *options)
    tool.main()
    arguments(tool, monkeypatch, tmp_path, *options)
    tool.main()
    rows = json.loads((tmp_path / 'results.json').read_text())['rows']
    assert [row['case'] for row in rows] == list(tool.CASES)
    assert all(row['seconds'] > 0 and row['peak'] > 2**20 for row in rows)
    assert [row['images'] for row in rows[-2:]] == [2 * tool.BATCHES] * 2
    said = (tmp_path / 'results.md').read_text()
    assert '| shortcut, blocks checkpointed | float32 | 2 |' in said
    arguments(tool, monkeypatch, tmp_path, *options[:-1], '2')
    with pytest.raises(SystemExit, match='other settings'):
        tool.main()
