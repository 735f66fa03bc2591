# SPDX-License-Identifier: Apache-2.0
"""What the hooks do with the Runner: evaluate, seed, save, mix data in."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.dataset import Compose
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner, TestLoop

from mmgap.compat import replace_dataset
from mmgap.configs import name_of
from mmgap.datasets.synthetic_mix import SyntheticMixDataset, batch_of, mixes_in
from mmgap.distributed import rank0_buffers
from mmgap.files import write_bytes
from mmgap.loop import group_report
from mmgap.seeds import derive_seed
from mmgap.wrappers import innermost


def evaluate(runner: Runner, split: str) -> dict[str, Any] | None:
    """The group report of the evaluator of ``'test'`` or ``'val'``; None without a dataloader."""
    if getattr(runner, f'_{split}_loop') is None:
        runner.logger.warning(f'[gap] the config has no {split}_dataloader to evaluate on')
        return None
    loop = getattr(runner, f'{split}_loop')
    # A loop of validation would save the best checkpoint and step schedules.
    with rank0_buffers(runner.model):  # those of the checkpoint
        return group_report(TestLoop(runner, loop.dataloader, loop.evaluator).run())


def evaluation_datasets(runner: Runner) -> list[Any]:
    """What the run validates and tests on."""
    return [
        getattr(runner, f'{split}_loop').dataloader.dataset
        for split in ('val', 'test')
        if getattr(runner, f'_{split}_loop') is not None
    ]


def mix_in(loader: Any) -> tuple[SyntheticMixDataset, bool]:
    """The mix in a dataloader's dataset, and whether the config names it; made if it does not.

    Raises:
        ValueError: If there are several.
    """
    outer = loader.dataset
    found = mixes_in(outer)
    if len(found) > 1:
        raise ValueError(
            f'the training data has {len(found)} SyntheticMixDatasets; one can be filled'
        )
    if not found:
        made = SyntheticMixDataset(outer)
        replace_dataset(loader, made)
        return made, False
    if found[0] is not outer:  # PyTorch asks the outermost for a batch
        outer.__getitems__ = partial(batch_of, found[0], outer)
    return found[0], True


def keep_order(runner: Runner, mix: SyntheticMixDataset) -> None:
    """See to it that a resumed run samples as the one before, and no two processes alike."""
    sampler = runner.train_loop.dataloader.sampler
    shared = not runner._randomness_cfg.get('diff_rank_seed', False)
    if runner._resume and shared and hasattr(sampler, 'seed'):
        # MMEngine makes it before it reads the seed of the run that goes on.
        sampler.seed = runner.seed
    if type(sampler).__name__ == 'RepeatAugSampler':
        mix.rank = dist.get_rank()  # it gives several processes the same samples


def seed_training(seed: int, position: int) -> None:
    """Seed everything random in training, for one epoch or iteration of this process."""
    seed = derive_seed(seed, 'training', position, dist.get_rank())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save_run(runner: Runner, name: str, position: dict[str, int]) -> None:
    """Save the run so that ``--resume`` finds it; whole or not at all.

    Args:
        runner: The run.
        name: File in its work directory.
        position: Finished ``epoch`` and ``iter``.
    """
    runner.save_checkpoint(runner.work_dir, f'.{name}', meta=dict(position))
    if dist.is_main_process():
        final = os.path.join(runner.work_dir, name)
        os.replace(os.path.join(runner.work_dir, f'.{name}'), final)
        write_bytes(Path(runner.work_dir, 'last_checkpoint'), final.encode())
    dist.barrier()


def learning_rate(runner: Runner) -> float:
    """The highest learning rate among a run's parameters, as a share of what it began with."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    groups = [group for one in wrappers for group in one.param_groups]
    # Without a schedule there is no 'initial_lr'.
    return max(group['lr'] / (group.get('initial_lr') or group['lr'] or 1) for group in groups)


def waiting_gradient(runner: Runner) -> dict[str, torch.Tensor]:
    """What a run with ``accumulative_counts`` has added up since its last step, by parameter.

    Empty just after a step, and with several processes: each has a gradient of its own until they
    are averaged at the step, and only the main one saves.
    """
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    if dist.get_world_size() > 1 or all(one.should_update() for one in wrappers):
        return {}
    parameters = plain_model(runner).named_parameters()
    return {name: p.grad.detach().cpu() for name, p in parameters if p.grad is not None}


def put_back_gradient(runner: Runner, gradient: dict[str, torch.Tensor]) -> None:
    """Let a resumed run go on with the gradient that its checkpoint carries."""
    if not gradient:
        return
    for name, parameter in plain_model(runner).named_parameters():
        if name in gradient:
            parameter.grad = gradient[name].to(parameter)
    runner.logger.info(
        '[gap] the gradient that waited for its step (accumulative_counts) is back from the '
        'checkpoint: nothing of it is lost'
    )


@contextmanager
def averaged(runner: Runner) -> Iterator[None]:
    """While open, the model has the weights that an EMAHook has averaged, if there is one.

    What it is at the end becomes the average too: that is what is tested and saved.
    """
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    for hook in hooks:
        hook._swap_ema_parameters()
    yield
    for hook in hooks:
        hook.ema_model.module.load_state_dict(plain_model(runner).state_dict())


def test_pipeline(runner: Runner) -> Compose | None:
    """The transforms of the test data, or of the validation's; None without either."""
    for split in ('test', 'val'):
        if getattr(runner, f'_{split}_loop') is not None:
            for part in innermost(getattr(runner, f'{split}_loop').dataloader.dataset):
                return part.pipeline
    return None


def from_folder(batch: Any, folder: str) -> list[bool]:
    """Which samples of a training batch are read from a folder.

    Raises:
        ValueError: If they do not say where they are from.
    """
    paths = [sample.metainfo.get('img_path') for sample in batch['data_samples']]
    if None in paths:
        raise ValueError(
            "injection weight needs 'img_path' among the meta_keys of the training pipeline's last "
            'transform'
        )
    own = os.path.join(os.path.abspath(folder), '')
    return [os.path.abspath(path).startswith(own) for path in paths]


def describe(runner: Runner) -> dict[str, str | None]:
    """Names of a run's ``config`` and ``model``; None where it has none to tell."""
    file, model = runner.cfg.filename, type(plain_model(runner)).__name__
    backbone = (runner.cfg.get('model') or {}).get('backbone') or {}
    kind = name_of(backbone['type']) if 'type' in backbone else None
    size = next((backbone[key] for key in ('depth', 'arch') if key in backbone), '')
    if kind:
        model = f'{model}, {kind} {size if isinstance(size, (int, str)) else ""}'.rstrip()
    return dict(config=None if file is None else Path(file).name, model=model)


def plain_model(runner: Runner) -> torch.nn.Module:
    """The model without its wrapper for several processes."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
