# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from mmgap.distributed import all_gather_list, broadcast_object, raise_on_all_ranks, shard
from tests.support import two_processes
from tests.support.datasets import DrawnDataset
from tests.support.processes import torchrun


def test_one_process_has_everything():
    assert shard(5) == slice(0, 5)
    assert all_gather_list([1, 2]) == [1, 2]
    assert broadcast_object('a') == 'a'
    with pytest.raises(ValueError, match='as it is'), raise_on_all_ranks(ValueError):
        raise ValueError('as it is')


@pytest.mark.parametrize('world', [1, 2, 3, 7])
def test_parts_are_all_and_alike(world, monkeypatch):
    monkeypatch.setattr('mmgap.distributed.dist.get_world_size', lambda: world)
    for count in range(12):
        parts = []
        for rank in range(world):
            monkeypatch.setattr('mmgap.distributed.dist.get_rank', lambda rank=rank: rank)
            parts.append(list(range(count))[shard(count)])
        assert sum(parts, []) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture(scope='module')
def two(tmp_path_factory, tiny_sd) -> Path:
    """What two processes have found and drawn in a folder, and what one may do beside it."""
    folder = tmp_path_factory.mktemp('two_processes')
    (folder / 'sd').symlink_to(tiny_sd)
    DrawnDataset(folder / 'drawn')
    module = ('-m', 'tests.support.two_processes')
    done = torchrun(*module, str(folder), str(folder / 'two'), 'pytorch')
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


def test_two_processes_do_what_one_does(two, on_cpu):
    """DESIGN: prompts within 1e-4, 99.9 % of the pixels within 1/255, one manifest."""
    two_processes.main(two, two / 'one', 'none')
    assert_same_prompts(two / 'one' / 'bank', two / 'two' / 'bank')
    samples = assert_same_pools(two / 'one' / 'pool', two / 'two' / 'pool')
    assert len(samples[0]) == 7
    for one, other in zip(*samples, strict=True):
        assert one['target_loss_image'] == pytest.approx(other['target_loss_image'], abs=1e-3)


@pytest.mark.slow  # 80 s: six processes, which import everything
def test_two_processes_of_the_tools_do_what_one_does(tmp_path):
    """search_prompts.py, then generate.py; depth, whose labels move with the pictures."""
    config, hook = 'configs/gap_resnet18_toydepth.py', 'custom_hooks.0'
    settings = dict(prompts_per_class=2, steps=2, tokens=4, batch_size=2, holdout=3)
    changes = [f'{hook}.search.{name}={value}' for name, value in settings.items()]
    changes += [f'{hook}.generator.autocast=None', f'{hook}.synthesis.num_inference_steps=5']
    changes += [f'{hook}.synthesis.batch_size=3', f'{hook}.synthesis.aim=0']
    changes += ['train_dataloader.dataset.size=12']
    out = {name: (tmp_path / name / 'prompts', tmp_path / name / 'pool') for name in ('one', 'two')}
    for name, processes in (('one', 1), ('two', 2)):
        prompts, pool = map(str, out[name])
        first = str(out['one'][0])  # searched alike or not, both draw with the same ones
        for command in (
            ['search_prompts.py', config, '--out', prompts],
            ['generate.py', config, '--prompts', first, '--num', '7', '--out', pool],
        ):
            # Or torchrun takes --num for an option of its own that it cannot tell from another.
            command = ['--', f'tools/{command[0]}', *command[1:], '--launcher', 'pytorch']
            done = torchrun(*command, '--cfg-options', *changes, processes=processes)
            assert done.returncode == 0, done.stdout[-3000:]
    assert_same_prompts(out['one'][0], out['two'][0])
    samples, _ = assert_same_pools(out['one'][1], out['two'][1])
    assert len(samples) == 7
    for sample in samples:
        one, two = (np.array(Image.open(out[name][1] / sample['depth_file'])) for name in out)
        np.testing.assert_array_equal(one, two)


def assert_same_prompts(first: Path, second: Path) -> None:
    names = sorted(path.name for path in first.glob('*.safetensors'))
    assert names and names == sorted(path.name for path in second.glob('*.safetensors'))
    for file in names:
        one, two = load_file(first / file), load_file(second / file)
        for name, embeddings in one.items():
            np.testing.assert_allclose(two[name], embeddings, atol=1e-4)


def assert_same_pools(first: Path, second: Path) -> list[list[dict]]:
    pools = (first, second)
    manifests = [[json.loads(line) for line in (pool / 'manifest.jsonl').open()] for pool in pools]
    alike = ('file', 'label', 'source_index', 'seed', 'generator', 'kept')
    for one, two in zip(*manifests, strict=True):
        assert {name: one[name] for name in alike} == {name: two[name] for name in alike}
    pixels = [
        np.stack([np.array(Image.open(pool / sample['file'])) for sample in manifest])
        for pool, manifest in zip(pools, manifests, strict=True)
    ]
    apart = np.abs(pixels[0].astype(int) - pixels[1])
    assert (apart <= 1).mean() >= 0.999
    return manifests


def test_processes_agree_where_they_must(two):
    """An error of one is raised by all; buffers are the main one's, then their own again."""
    main, other = (json.loads((two / 'two' / f'agreed_{i}.json').read_text()) for i in (0, 1))
    assert main['error'] == ['ValueError', 'source 3 is bad']
    assert other['error'] == ['UnicodeError', 'source 3 is bad']
    assert main['inside'] == other['inside'] == [1, 1]
    assert (main['outside'], other['outside']) == ([1, 1], [2, 2])
    assert main['sums'] == other['sums'] == [[2, 1], [[5]]]
    assert (main['main'], other['main']) == ([0, 1, 1], [])
