# SPDX-License-Identifier: Apache-2.0
"""Pools that somebody has damaged, moved or made for something else."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmgap.locks import locked
from mmgap.pool import SamplePool
from tests.soak.stage import Stage, case
from tests.support.commands import Finished
from tests.support.pools import ABOUT, fill_pool, picture

DRAW = ('--text', 'a b', '--num', 2)


@case('the last line of a manifest is cut off', 'generate')
def manifest_cut(stage: Stage) -> None:
    pool = drawn_pool(stage)
    whole = pool.manifest.read_bytes()
    pool.manifest.write_bytes(whole[:-30])
    stage.accepts('generate', stage.config(), *DRAW, '--out', pool.folder)
    assert pool.manifest.read_bytes() == whole
    assert len(SamplePool(pool.folder)) == 2


@case('a manifest that ends in the middle of a UTF-8 sign', 'generate')
def manifest_cut_sign(stage: Stage) -> None:
    pool = drawn_pool(stage)
    whole = pool.manifest.read_bytes()
    pool.manifest.write_bytes(whole[:-30] + 'ß'.encode()[:1])
    stage.accepts('generate', stage.config(), *DRAW, '--out', pool.folder)
    assert pool.manifest.read_bytes() == whole


@case('a manifest with a broken line in its middle', 'train')
def manifest_broken(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 4)
    lines = pool.manifest.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:40] + b'\xc3\n'
    pool.manifest.write_bytes(b''.join(lines))
    stage.refuses('train', mixed(stage, pool), says=[pool.manifest, 'line 2', 'JSON'])


@case('a manifest whose second image is missing', 'train')
def image_missing(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 4)
    pool.path(pool.samples[1]).unlink()
    says = [pool.manifest, 'line 2', 'images/000001.png', 'missing', 'delete this line']
    stage.refuses('train', mixed(stage, pool), says=says)


@case('an image of a pool that is half there', 'generate')
def image_half(stage: Stage) -> None:
    pool = drawn_pool(stage)
    path = pool.path(pool.samples[0])
    path.write_bytes(path.read_bytes()[:99])
    says = [pool.manifest, 'line 1', '99 of']
    stage.refuses('generate', stage.config(), *DRAW, '--out', pool.folder, says=says)


@case('a manifest with a label in words', 'train')
def label_in_words(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 4)
    edit(pool, 2, label='landbird')
    stage.refuses('train', mixed(stage, pool), says=[pool.manifest, 'line 3', "'landbird'"])


@case('a manifest with numbers as text', 'train')
def numbers_as_text(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 4)
    edit(pool, 0, source_index='3')
    stage.refuses('train', mixed(stage, pool), says=[pool.manifest, 'line 1', 'source_index'])


@case('a pool of a data set with more classes', 'train')
def other_classes(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 4)
    edit(pool, 1, label=7)
    stage.refuses('train', mixed(stage, pool), says=[pool.folder, '7', 'landbird'])


@case('a pool folder that is a file', 'train')
def pool_is_a_file(stage: Stage) -> None:
    path = stage.folder / 'pool'
    path.write_text('pool')
    stage.refuses('train', mixed(stage, path), says=[path])


@case('a pool folder that is a file', 'generate')
def out_is_a_file(stage: Stage) -> None:
    path = stage.folder / 'pool'
    path.write_text('pool')
    stage.refuses('generate', stage.config(), *DRAW, '--out', path, says=[path])


@case('an empty pool with a budget', 'train')
def pool_empty(stage: Stage) -> None:
    pool = SamplePool(stage.folder / 'pool')
    stage.refuses('train', mixed(stage, pool, budget=2), says=[pool.folder, '2'])


@case('a budget that is more than a pool has', 'train')
def pool_short(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 3)
    stage.refuses('train', mixed(stage, pool, budget=9), says=[pool.folder, 'budget', '9', '3'])


@case('a pool behind a symbolic link', 'train')
def pool_linked(stage: Stage) -> None:
    fill_pool(stage.folder / 'elsewhere', 4)
    (stage.folder / 'pool').symlink_to(stage.folder / 'elsewhere')
    stage.accepts('train', mixed(stage, SamplePool(stage.folder / 'pool')))


@case('a pool behind a dangling link', 'generate')
def pool_dangling(stage: Stage) -> None:
    path = stage.folder / 'pool'
    path.symlink_to(stage.folder / 'nothing')
    stage.refuses('generate', stage.config(), *DRAW, '--out', path, says=[path, 'link'])


@case('an image of a pool that is a link to a file elsewhere', 'train')
def image_link(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 4)
    path = pool.path(pool.samples[2])
    path.rename(stage.folder / 'secret.png')
    path.symlink_to(stage.folder / 'secret.png')
    stage.refuses('train', mixed(stage, pool), says=[pool.manifest, 'line 3', 'outside the pool'])


@case('a pool that another generator has drawn', 'generate')
def other_generator(stage: Stage) -> None:
    pool = drawn_pool(stage)
    before = pool.manifest.read_bytes()
    config = stage.config(hook__generator__guidance_scale=2.0)
    done = stage.run('generate', config, *DRAW, '--out', pool.folder)
    again = SamplePool(pool.folder)
    assert done.code != 0 or {one.generator for one in again.samples} == set(again.generators), (
        'neither refused nor drawn anew'
    )
    assert done.code == 0 or pool.manifest.read_bytes() == before
    assert len({one.generator for one in again.samples}) == 1, 'images of two generators'
    if done.code == 0:
        stage.said = next(
            line for line in done.output.splitlines() if 'another' in line or 'dropped' in line
        )


@case('a depth pool for a classifier', 'train')
def depth_pool(stage: Stage) -> None:
    pool = SamplePool(stage.folder / 'pool')
    depth = picture(3)[..., 0].astype('uint16')
    for i in range(3):
        pool.append(picture(i), depth, **{**ABOUT, 'label': 0, 'depth_unit': 0.001})
    stage.refuses('train', mixed(stage, pool), says=[pool.folder, 'depth'])


@case('two commands that draw into one pool at once', 'generate')
def two_at_once(stage: Stage) -> None:
    pool = drawn_pool(stage)
    config = stage.config()

    def second() -> Finished:
        return stage.run('generate', config, '--text', 'c', '--num', 4, '--out', pool.folder)

    with locked(pool.folder):
        done = stage.forked(second)
    stage.check_refused(done, [pool.folder, 'another process'])
    stage.accepts('generate', config, *DRAW, '--out', pool.folder)


@case('the same manifest line twice', 'train')
def line_twice(stage: Stage) -> None:
    pool = fill_pool(stage.folder / 'pool', 3)
    lines = pool.manifest.read_bytes().splitlines(keepends=True)
    pool.manifest.write_bytes(b''.join([*lines, lines[1]]))
    says = [pool.manifest, 'line 4', 'images/000001.png', 'line 2']
    stage.refuses('train', mixed(stage, pool), says=says)


@case('a pool without its manifest', 'generate')
def no_manifest(stage: Stage) -> None:
    pool = drawn_pool(stage)
    whole = pool.manifest.read_bytes()
    pool.manifest.unlink()
    stage.accepts('generate', stage.config(), *DRAW, '--out', pool.folder)
    assert pool.manifest.read_bytes() == whole
    assert len(os.listdir(pool.folder / 'images')) == 2


@case('a mix whose ratio is text', 'train')
def mix_ratio_text(stage: Stage) -> None:
    config = mixed(stage, stage.shared.pool, ratio='half')
    stage.refuses('train', config, says=['SyntheticMixDataset ratio', 'number', "'half'"])


@case('a mix whose budget is text', 'check')
def mix_budget_text(stage: Stage) -> None:
    config = mixed(stage, stage.shared.pool, budget='2')
    stage.checks_wrong(config, says=['SyntheticMixDataset budget', 'whole number', "'2'"])


@case('an InjectionHook whose budget is text', 'train')
def hook_budget_text(stage: Stage) -> None:
    hook = dict(type='mmgap.InjectionHook', pool=str(stage.shared.pool), budget='2')
    config = stage.config(text=f'custom_hooks = [{hook!r}]\n')
    stage.refuses('train', config, says=['InjectionHook budget', 'whole number', "'2'"])


# What the cases share


def drawn_pool(stage: Stage) -> SamplePool:
    """A pool of two images that ``generate`` has drawn; a copy of what the cases share."""
    return SamplePool(stage.copy(stage.shared.pool, 'pool'))


def edit(pool: SamplePool, number: int, **changes: object) -> None:
    """Change a line of a manifest."""
    lines = pool.manifest.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changes})
    pool.manifest.write_text('\n'.join(lines) + '\n')


def mixed(stage: Stage, pool: SamplePool | Path, **settings: object) -> Path:
    """A config of a short training on a pool."""
    folder = pool if isinstance(pool, Path) else pool.folder
    added = dict(type='mmgap.SyntheticMixDataset', pool=str(folder), **settings)
    text = (
        f"train_dataloader['dataset'] = dict({added!r}, dataset=train_dataloader['dataset'])\n"
        "custom_hooks = []\ntrain_cfg['max_epochs'] = 1\n"
    )
    return stage.config(text=text)
