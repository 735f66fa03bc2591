# SPDX-License-Identifier: Apache-2.0
"""``mmgap configs`` lists what there is, and copies mean what the originals mean."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from mmgap.configs import shipped_configs
from tests.support.commands import run_command


def test_list():
    said = run_command('mmgap', 'configs').check()
    rows = [line.split('  ', 1) for line in said.split('\n\n')[0].splitlines()]
    old = {'gap_zoo_toybirds', 'gap_unet_taskonomy-depth', 'gap_resnet50_waterbirds_guided'}
    listed = [row[0] for row in rows]
    shown = [name for name in shipped_configs() if name in listed]
    assert listed == shown and not old & set(listed) and old < set(shipped_configs())
    assert len(shipped_configs()) - len(listed) == 6
    for name, about in rows:
        comment = shipped_configs()[name].read_text().split('_base_')[0].replace('\n# ', ' ')
        assert comment.startswith(f'# {about.strip()}') and len(about.split()) >= 4


def test_copies_are_whole(tmp_path):
    """Each file is the shipped one, and none that it inherits from is missing."""
    for name, original in shipped_configs().items():
        out = tmp_path / name
        said = run_command('mmgap', 'configs', name, '--out', out).check()
        *wrote, last = said.splitlines()
        assert last == f'change it, then: mmgap train {out / name}.py'
        files = [path for path in out.rglob('*') if path.is_file()]
        assert sorted(wrote) == sorted(f'wrote {path}' for path in files)
        for path in files:
            shipped = original.parents[name.count('/')] / path.relative_to(out)
            assert path.read_bytes() == shipped.read_bytes()
            own = [base for base in Config._get_base_files(path) if '::' not in base]
            assert all((path.parent / base).is_file() for base in own)


@pytest.mark.parametrize('name', ['gap_resnet50_waterbirds', 'benchmark/toybirds_zoo'])
def test_copies_mean_the_same(name, tmp_path):
    run_command('mmgap', 'configs', name, cwd=tmp_path).check()
    copy = Config.fromfile(tmp_path / 'configs' / f'{name}.py')
    assert copy.to_dict() == Config.fromfile(shipped_configs()[name]).to_dict()


def test_what_is_there_stays(tmp_path):
    options = ('configs', 'ap_resnet18_toybirds.py', '--out', tmp_path)
    run_command('mmgap', *options).check()
    changed = tmp_path / '_base_' / 'datasets' / 'toybirds.py'
    own = tmp_path / 'ap_resnet18_toybirds.py'
    own.unlink()
    assert f'wrote {own}\n' in run_command('mmgap', *options).check()
    own.unlink()
    changed.write_text('train_cfg = dict()\n')
    done = run_command('mmgap', *options)
    assert done.code == 1 and f'{changed} would be overwritten' in done.output
    assert changed.read_text() == 'train_cfg = dict()\n' and not own.exists()


def test_bad_arguments(tmp_path):
    done = run_command('mmgap', 'configs', 'toybirds', '--out', tmp_path / 'out')
    assert done.code == 1 and not list(tmp_path.iterdir())
    assert "config 'toybirds' does not exist, and mmgap ships none" in done.output
    assert 'ap_resnet18_toybirds' in done.output and 'gap_zoo' not in done.output
    done = run_command('mmgap', 'configs', '--out', tmp_path)
    assert done.code == 2 and 'name the config to copy' in done.output
