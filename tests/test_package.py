# SPDX-License-Identifier: Apache-2.0
import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import mmgap

REPO = Path(__file__).resolve().parents[1]
SOURCES = (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'configs',
    'mmgap',
    'model-index.yml',
    'requirements',
    'setup.py',
    'tools',
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the sources: building leaves folders behind."""
    tmp = tmp_path_factory.mktemp('wheel')
    source = tmp / 'source'
    source.mkdir()
    ignore = shutil.ignore_patterns('__pycache__')
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, source / name, ignore=ignore)
        elif (REPO / name).exists():
            shutil.copy2(REPO / name, source / name)
    # Stands for a diffusion model: files in a folder of the weights that is no package.
    nested = source / 'mmgap' / 'toyworld' / 'weights' / 'model' / 'unet'
    nested.mkdir(parents=True)
    (nested / 'config.json').write_text('{}')
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-index', '--no-deps']
    command += ['--no-build-isolation', '--wheel-dir', str(tmp), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp.glob('mmgap-*.whl')
    return zipfile.ZipFile(path)


def files_below(folder: Path) -> set[str]:
    """Relative names of the files that belong into a wheel."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file()
        and not any(part.startswith(('.', '__pycache__')) for part in path.parts[-2:])
    }


def in_wheel(wheel: zipfile.ZipFile, folder: str) -> set[str]:
    return {name.removeprefix(folder) for name in wheel.namelist() if name.startswith(folder)}


def test_mim_folder_holds_configs_and_tools(wheel: zipfile.ZipFile) -> None:
    assert in_wheel(wheel, 'mmgap/.mim/configs/') == files_below(REPO / 'configs')
    # But for those that work in a checkout alone.
    tools = {
        name
        for name in files_below(REPO / 'tools')
        if not name.startswith('toyworld/') and name != 'gpu_checks.sh'
    }
    assert 'train.py' in tools and in_wheel(wheel, 'mmgap/.mim/tools/') == tools


def test_command_of_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """It is there, and finds the configs that came with it."""
    info = f'mmgap-{mmgap.__version__}.dist-info'
    points = wheel.read(f'{info}/entry_points.txt').decode()
    assert points.split() == ['[console_scripts]', 'mmgap', '=', 'mmgap.cli.main:main']
    installed = tmp_path / 'site-packages'
    wheel.extractall(installed, [n for n in wheel.namelist() if 'weights' not in n])
    done = subprocess.run(
        [sys.executable, '-m', 'mmgap', 'configs', 'gap_resnet18_toybirds'],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    copy = tmp_path / 'configs' / 'gap_resnet18_toybirds.py'
    assert copy.read_bytes() == (REPO / 'configs' / copy.name).read_bytes()


def test_model_index_leads_to_configs_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    index = yaml.safe_load(wheel.read('mmgap/.mim/model-index.yml'))
    models = []
    for name in index['Import']:
        models += yaml.safe_load(wheel.read(f'mmgap/.mim/{name}'))['Models']
    assert models
    for model in models:
        assert f'mmgap/.mim/{model["Config"]}' in wheel.namelist(), model['Name']


def test_every_module_and_weight_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert 'mmgap/toyworld/weights/model/unet/config.json' in names
    assert {f'mmgap/{name}' for name in files_below(REPO / 'mmgap')} <= names


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split('/')[0] for name in wheel.namelist()}
    assert tops == {'mmgap', f'mmgap-{mmgap.__version__}.dist-info'}
    assert not [name for name in wheel.namelist() if name.endswith('.pyc')]


def test_licence_and_metadata(wheel: zipfile.ZipFile) -> None:
    info = f'mmgap-{mmgap.__version__}.dist-info'
    (licence,) = [name for name in in_wheel(wheel, f'{info}/') if name.endswith('LICENSE')]
    assert wheel.read(f'{info}/{licence}') == (REPO / 'LICENSE').read_bytes()
    metadata = email.message_from_bytes(wheel.read(f'{info}/METADATA'))
    assert metadata['Name'] == 'mmgap'
    assert metadata['Version'] == mmgap.__version__
    assert {'lite', 'openmmlab', 'onedl', 'test'} <= set(metadata.get_all('Provides-Extra'))
    forced = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    assert any(line.startswith('torch') for line in forced)
    assert not [line for line in forced if line.startswith(('mm', 'onedl'))]


IMPORT_PROBE = """
import json, sys, time
import mmengine
before = set(sys.modules)
start = time.perf_counter()
import mmgap
seconds = time.perf_counter() - start
loaded = sorted({name.split('.')[0] for name in set(sys.modules) - before})
print(json.dumps(dict(seconds=seconds, loaded=loaded)))
"""


def test_import_is_cheap_and_loads_nothing_heavy(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        command = [sys.executable, '-c', IMPORT_PROBE]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=REPO, check=True
        )
        probe = json.loads(done.stdout.splitlines()[-1])
        seconds.append(probe['seconds'])
        heavy = {'torch', 'torchvision', 'diffusers', 'transformers', 'open_clip', 'matplotlib'}
        heavy |= {'mmseg', 'mmpretrain', 'mmcv', 'timm', 'accelerate'}
        assert not heavy & set(probe['loaded'])
    # The smallest of several, since other processes only ever add to it.
    assert min(seconds) < 0.3
