# SPDX-License-Identifier: Apache-2.0
"""``mmgap COMMAND …``: all that mmgap does, from an installed package too.

Nothing but the standard library is imported before a command is chosen, so that ``mmgap --help``
comes at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from mmgap import __version__
from mmgap.cli import errors

# Name of a command: the function that runs it, which reads sys.argv, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    'configs': ('mmgap.cli.configs:main', 'list the shipped configs, or copy one to change it'),
    'check': ('mmgap.checks.ready:main', 'is everything in place, and what will a run take?'),
    'train': ('mmgap.cli.train:main', 'train a model; a GAPHook in its config runs the loop'),
    'report': ('mmgap.cli.report:main', 'make the page of a run again from its work directory'),
    'test': ('mmgap.cli.test:main', "evaluate a checkpoint on the config's test data"),
    'search': ('mmgap.cli.search:main', 'search prompts against a model, apart from training'),
    'generate': ('mmgap.cli.generate:main', 'draw labelled images with prompts into a pool'),
    'masks': ('mmgap.masks.make:main', 'make masks for images that have none'),
    'benchmark': ('mmgap.benchmark.run:main', 'compare methods at equal image budgets over seeds'),
    'zoo': ('mmgap.benchmark.zoo:main', 'compare targets, and what images of one do to the others'),
    'cost': ('mmgap.checks.cost:main', 'measure what a search step and an image cost here'),
}
HELP = """\
usage: mmgap COMMAND …

mmgap finds where your vision model fails, makes labelled training images of exactly that with a
diffusion model, and trains on them. A config with an mmgap.GAPHook runs this loop during training:

  search     optimise prompts until the model fails on what they draw; guidance pulls them toward
             where you say the model will be used
  generate   draw many images with the found prompts; object or depth, and so the label, stay
  train      these images enter the batches, or the last layer is fitted to them at the end

Begin with `mmgap configs`, `mmgap check NAME` and `mmgap train NAME`, which runs all of the loop;
search and generate do its steps apart. NAME is a config file, or the name of a shipped config.

"""


def help_text() -> str:
    """What ``mmgap --help`` prints."""
    lines = ''.join(f'  {name:<11}{about}\n' for name, (_, about) in COMMANDS.items())
    return (
        f'{HELP}{lines}\n`mmgap COMMAND --help` says more; `mmgap --version`.\n'
        'MMGAP_DEBUG=1 before a command shows where an error comes from.\n'
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: Its name and its own arguments; those of the process by default.

    Raises:
        SystemExit: If there is no such command, or nothing of OpenMMLab for it to run on; and as
            the command ends.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ['']
    if name in ('-h', '--help', 'help'):
        print(help_text(), end='')
        return
    if name == '--version':
        print(f'mmgap {__version__}')
        return
    if not name:  # an error for scripts, help for people
        print(help_text(), end='', file=sys.stderr)
        raise SystemExit(2)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        meant = f' Did you mean {near[0]!r}?' if near else ''
        raise SystemExit(
            f'mmgap has no command {name!r}.{meant} There are {", ".join(COMMANDS)}; '
            '`mmgap --help` says what they do'
        )
    module, function = COMMANDS[name][0].split(':')
    sys.argv[:] = [f'mmgap {name}', *rest]  # argparse takes the first for the program's name
    try:
        run = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        missing = (error.name or '').split('.')[0]
        if missing not in ('mmengine', 'mmcv', 'mmpretrain', 'mmseg'):
            raise
        raise SystemExit(
            f'mmgap {name} needs {missing}, which is not installed: mmgap leaves the choice of '
            "OpenMMLab's packages to you. pip install 'mmgap[openmmlab,lite]' adds a set of them "
            'to an environment that has none'
        ) from error
    errors.run(run)
