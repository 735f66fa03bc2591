# SPDX-License-Identifier: Apache-2.0
"""Step by step: the commands find and draw what the hook does, and training takes up their pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from mmgap.pool import SamplePool
from mmgap.prompts import load_prompts
from tests.support.commands import run_command
from tests.support.devices import see_no_gpu


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob(pattern))}


@pytest.fixture(scope='module')
def on_cpu():
    """Tools and hook agree to the bit there, in whichever process they run."""
    with pytest.MonkeyPatch.context() as patch:
        see_no_gpu(patch)
        yield


class Made(NamedTuple):
    """A training's folder, that of what the tools made of its config, and their options."""

    run: Path
    out: Path
    draw: tuple


@pytest.fixture(scope='module')
def made(waterbirds_run, tmp_path_factory, on_cpu) -> Made:
    out = tmp_path_factory.mktemp('tools')
    weights = waterbirds_run / 'work' / 'gap_round.pth'  # as they were when the hook searched
    common = (waterbirds_run / 'config.py', '--checkpoint', weights)
    run_command('search_prompts', *common, '--out', out / 'prompts').check()
    draw = (*common, '--prompts', out / 'prompts', '--out', out / 'pool')
    run_command('generate', *draw, '--num', 6).check()
    return Made(waterbirds_run, out, draw)


def test_tools_find_and_draw_what_the_hook_does(made):
    out, gap = made.out, made.run / 'work' / 'gap'
    prompts = contents(out / 'prompts', '*.safetensors')
    assert len(prompts) == 2 and prompts == contents(gap / 'prompts', '*.safetensors')
    rows = json.loads((out / 'prompts' / 'summary.json').read_text())
    assert rows['prompts'] == json.loads((gap / 'summary.json').read_text())['rounds'][0]['prompts']
    assert rows['seed'] == 0 and rows['versions']['torch'] and rows['seconds'] > 0
    assert contents(out / 'pool', 'images/*') == contents(gap / 'pool', 'images/*')
    manifest = (out / 'pool' / 'manifest.jsonl').read_bytes()
    assert manifest == (gap / 'pool' / 'manifest.jsonl').read_bytes()
    assert (out / 'pool' / 'contact_sheet.png').stat().st_size > 1000
    assert not list(out.glob('**/*.tmp'))


def test_generate_goes_on_and_takes_words(made):
    before = contents(made.out / 'pool', 'images/*')
    assert '4 images drawn' in run_command('generate', *made.draw, '--num', 10).check()
    after = contents(made.out / 'pool', 'images/*')
    assert len(after) == 10 and before.items() <= after.items()
    config, out = made.run / 'config.py', made.out / 'words'
    run_command('generate', config, '--text', 'a b', 'c', '--num', 4, '--out', out).check()
    samples = SamplePool(out).samples
    assert [sample.prompt_id.split('@')[0] for sample in samples] == ['a_b', 'a_b', 'c', 'c']
    assert {sample.target_loss_image for sample in samples} == {None}


def test_search_goes_on_from_its_checkpoint(made):
    prompts = made.out / 'prompts'
    before = contents(prompts, '*.safetensors')
    said = run_command('search_prompts', *made.draw[:3], '--out', prompts).check()
    assert 'goes on from' in said and 'search step' not in said
    assert contents(prompts, '*.safetensors') == before
    assert len(load_prompts(prompts)) == 2


def test_training_on_the_pool(made, tmp_path):
    """Step by step: a config without the hook that names the mix."""
    config = tmp_path / 'mixed.py'
    config.write_text(
        f'_base_ = [{str(made.run / "config.py")!r}]\n'
        'custom_hooks = []\n'
        'train_cfg = dict(max_epochs=1)\n'
        f'work_dir = {str(tmp_path / "mixed")!r}\n'
        'train_dataloader = dict(dataset=dict(_delete_=True, '
        f"type='mmgap.SyntheticMixDataset', pool={str(made.out / 'pool')!r}, ratio=0.5, "
        "mode='extend', dataset={{_base_.train_dataloader.dataset}}))\n"
    )
    said = run_command('train', config).check()
    # 16 real samples and as many generated ones, in batches of 8.
    assert '[1][4/4]' in said and 'worst_group' in said
    assert (tmp_path / 'mixed' / 'epoch_1.pth').is_file()


def test_bad_input(waterbirds_run, tmp_path):
    config = waterbirds_run / 'config.py'
    for args, words in (
        ((config, '--num', 3, '--out', tmp_path), 'give --prompts, --text or both'),
        ((config, '--text', 'a', '--num', 0, '--out', tmp_path), '--num must be at least 1'),
        ((config, '--prompts', 'none', '--num', 3, '--out', tmp_path), "'none' does not exist"),
        (('none.py', '--text', 'a', '--num', 3, '--out', tmp_path), "'none.py' does not exist"),
    ):
        done = run_command('generate', *args)
        assert done.code != 0 and words in done.output
        assert not list(tmp_path.iterdir())
