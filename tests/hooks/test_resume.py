# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and resumed ends as one that was not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmgap.compat import allow_checkpoint_history
from tests.support.commands import run_command
from tests.support.configs import depth_config
from tests.support.processes import Forked, finish, kill_when, start
from tests.support.small_config import small_config

CPU = pytest.mark.usefixtures('on_cpu')  # on a GPU no two runs are equal to the bit


def lines(path: Path) -> int:
    return path.read_bytes().count(b'\n') if path.exists() else 0


def result(work_dir: Path, name: str) -> dict:
    """Everything that must be equal: weights, prompts, pool."""
    allow_checkpoint_history()
    checkpoint = torch.load(work_dir / name, weights_only=True)
    tensors = {f'weight {k}': v for k, v in checkpoint['state_dict'].items()}
    for index, state in checkpoint['optimizer']['state'].items():
        tensors |= {f'{name} {index}': slot for name, slot in state.items()}
    gap = work_dir / 'gap'
    files = [*gap.glob('prompts/*.safetensors'), *gap.glob('pool/**/*')]
    contents = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    contents |= {str(f.relative_to(gap)): f.read_bytes() for f in files if f.is_file()}
    # hashes: a difference is reported by name, not as pages of bytes
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in contents.items()}


def check_kills(
    whole: Path,
    config: Path,
    last: str,
    points: list[Callable[[Path], bool]],
    launch: Callable = start,
    end: Callable = lambda *command: finish(start(*command)),
) -> dict[str, str]:
    """Kill a training at each point and resume it: it ends as another that was not killed.

    Args:
        whole: The other's work directory.
        config: Of the training that is killed.
        last: Name of the last checkpoint.
        points: Say of the work directory whether the point is reached, one after the other.
        launch: Starts the process that is killed.
        end: Trains to the end.

    Returns:
        Hashes of what both end with.
    """
    cut = Path(Config.fromfile(config).work_dir)
    expected = result(whole, last)
    options: tuple[str, ...] = ()
    for number, reached in enumerate(points):
        kill_when(launch(config, *options), lambda reached=reached: reached(cut))
        if number == len(points) - 1:  # as a kill leaves it in the instant in which it is written
            (cut / 'last_checkpoint').write_text('')
        assert not (cut / last).exists(), 'the run was over before it was killed'
        options = ('--resume',)
    end(config, *options)
    resumed = result(cut, last)
    assert sorted(resumed) == sorted(expected)
    assert [name for name in expected if resumed[name] != expected[name]] == []
    summaries = [
        json.loads((work_dir / 'gap' / 'summary.json').read_text()) for work_dir in (whole, cut)
    ]
    for summary in summaries:
        for about in summary['rounds']:
            del about['seconds']
    for key in ('before', 'after', 'rounds', 'images', 'seed'):
        assert summaries[0][key] == summaries[1][key]
    return expected


def in_search(cut: Path, number: int = 0) -> bool:
    return (cut / 'gap' / 'search' / f'round_{number}.safetensors').exists()


def in_synthesis(cut: Path) -> bool:
    return lines(cut / 'gap' / 'pool' / 'manifest.jsonl') >= 1


POINTS = [
    in_search,
    in_synthesis,
    lambda cut: (cut / 'epoch_2.pth').exists() or (cut / 'iter_6.pth').exists(),
    lambda cut: in_search(cut, 1),
]


@pytest.mark.smoke
@pytest.mark.skipif(torch.cuda.is_initialized(), reason='CUDA does not work in forked processes')
def test_killed_and_resumed_equals_uninterrupted(whole_run, as_whole_run, data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path / 'cut', workers=2)
    config.dump(tmp_path / 'cut.py')

    def fork(config: Path, *options: str) -> Forked:
        return Forked(tmp_path / 'log', 'train', config, *options)

    def end(config: Path, *options: str) -> None:
        run_command('train', config, *options).check()

    expected = check_kills(
        whole_run.work_dir, tmp_path / 'cut.py', 'epoch_5.pth', POINTS, fork, end
    )
    assert len([name for name in expected if name.endswith('.png')]) == 8


@CPU
@pytest.mark.slow  # 60 s each: six processes, which import everything; the test above forks
@pytest.mark.parametrize('by_epoch', [True, False])
def test_in_processes_that_start_anew(by_epoch, tmp_path, data, tiny_sd):
    for name in ('whole', 'cut'):
        config = small_config(data, tiny_sd, tmp_path / name, by_epoch, workers=2)
        config.dump(tmp_path / f'{name}.py')
    finish(start(tmp_path / 'whole.py'))
    last = 'epoch_5.pth' if by_epoch else 'iter_10.pth'
    check_kills(tmp_path / 'whole', tmp_path / 'cut.py', last, POINTS)


@CPU
@pytest.mark.slow  # 110 s: five processes, and a ControlNet beside the model
def test_depth_killed_and_resumed_equals_uninterrupted(tmp_path, tiny_sd, tiny_controlnet):
    for name in ('whole', 'cut'):
        config = depth_config('gap_resnet18_toydepth', tmp_path, tiny_sd, tiny_controlnet)
        config.work_dir = str(tmp_path / name)
        config.train_cfg.update(max_epochs=4)
        config.custom_hooks[0].update(budget=12)
        config.custom_hooks[0].search.update(steps=4)
        config.custom_hooks[0].synthesis.update(batch_size=2)
        config.dump(tmp_path / f'{name}.py')
    finish(start(tmp_path / 'whole.py'))
    points = [in_search, in_synthesis, lambda cut: (cut / 'epoch_2.pth').exists()]
    expected = check_kills(tmp_path / 'whole', tmp_path / 'cut.py', 'epoch_4.pth', points)
    # an image and a depth map each
    assert len([name for name in expected if name.endswith('.png')]) == 24


def test_checkpoint_loads_in_test_tool(whole_run, data, tiny_sd, tmp_path):
    """torch >= 2.6 loads weights-only, MMEngine 0.10.7 writes its log history into checkpoints."""
    small_config(data, tiny_sd, tmp_path).dump(tmp_path / 'config.py')
    command = (tmp_path / 'config.py', whole_run.work_dir / 'epoch_1.pth')
    assert 'worst_group' in run_command('test', *command, '--work-dir', tmp_path / 'test').check()
