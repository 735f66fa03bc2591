# SPDX-License-Identifier: Apache-2.0
"""Which file a name means, in a checkout and in an installed wheel."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from mmgap import configs
from mmgap.configs import Changes, find_config, read_config, shipped_configs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The configs of a package in site-packages, where somebody else has a folder ``configs``."""
    folder = tmp_path / 'mmgap' / '.mim' / 'configs'
    for name in ('ap_model_data', '_base_/data', 'benchmark/data', 'benchmark/_base_/methods'):
        path = folder / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('seed = 1\n')
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'other.py').write_text('')
    (folder.parent / 'model-index.yml').write_text('')
    monkeypatch.setattr(configs, 'PACKAGE', tmp_path / 'mmgap')
    monkeypatch.chdir(tmp_path)
    return folder


def test_checkout():
    names = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert names <= set(shipped_configs()) and not [n for n in shipped_configs() if '_base_' in n]
    for name in names:
        assert find_config(name) == find_config(f'{name}.py') == ROOT / 'configs' / f'{name}.py'


def test_wheel(installed):
    assert list(shipped_configs()) == ['ap_model_data', 'benchmark/data']
    assert find_config('ap_model_data.py') == installed / 'ap_model_data.py'
    assert find_config('benchmark/data') == installed / 'benchmark' / 'data.py'
    # Files of one's own come first.
    assert find_config('configs/other.py') == Path('configs/other.py')
    Path('ap_model_data.py').write_text('seed = 2\n')
    assert read_config('ap_model_data.py', {'a.b': 3}).to_dict() == dict(seed=2, a=dict(b=3))
    assert read_config('ap_model_data').seed == 1


@pytest.mark.parametrize(
    'name, near',
    [
        ('ap_modle_data', 'near it are ap_model_data; '),
        ('configs/ap_model_data', 'near it are ap_model_data; '),
        ('data.py', 'near it are ap_model_data, benchmark/data; '),
        ('_base_/data', 'near it are ap_model_data, benchmark/data; '),
        ('resnet', 'this name; `mmgap configs` lists all'),
    ],
)
def test_unknown_names(name, near, installed):
    with pytest.raises(FileNotFoundError) as raised:
        find_config(name)
    assert f'config {name!r} does not exist, and mmgap ships none of' in str(raised.value)
    assert near in str(raised.value)
    with pytest.raises(SystemExit, match='lists all'):
        read_config(name)


def test_package_without_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, 'PACKAGE', tmp_path / 'mmgap')
    with pytest.raises(FileNotFoundError, match='installed without its configs'):
        find_config('gap_resnet18_toybirds')


def changed(*pairs: str) -> dict:
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=Changes)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


@pytest.mark.parametrize(
    'text, value',
    [
        ('a photo of {}', 'a photo of {}'),
        ('night (fog)', 'night (fog)'),
        ('data/my set/a.pth', 'data/my set/a.pth'),
        ("'night, fog'", 'night, fog'),
        ('["in fog", "at night, late"]', ['in fog', 'at night, late']),
        # As in MMEngine.
        ('[1, 2]', [1, 2]),
        ('(1, [a, b])', (1, ['a', 'b'])),
        ('a,b', ['a', 'b']),
        (' 5', 5),
        ('1e-3', 1e-3),
        ('None', None),
    ],
)
def test_texts_of_the_command_line_keep_their_spaces(text, value):
    assert changed('b=1', f'c.d={text}') == {'b': 1, 'c.d': value}


@pytest.mark.parametrize('text', ['in fog, at night', '[in fog,night]', '(in fog)', 'a [b, c'])
def test_texts_that_may_be_lists_need_quotes(text, capsys):
    with pytest.raises(SystemExit):
        changed(f'a={text}')
    assert 'a: texts with spaces and commas need quotes of their own' in capsys.readouterr().err
