# SPDX-License-Identifier: Apache-2.0
"""List the shipped configs, or copy one into a folder of yours, to change it.

A copy comes with the files of mmgap that it inherits from, in the same places below the folder: all
of it can be changed, and it says the same on other machines and after an update of mmgap. Bases of
the toolboxes (mmpretrain::…) stay where they are installed. Nothing that is there is overwritten.
"""

# Why not one file that inherits from the installed ones: MMEngine resolves `package::` bases for a
# closed list of packages that mmgap is not on, in folders of `configs` alone, and would mark what
# they hold with `_scope_`, in which MMPretrain's types are not found. A base at an absolute path
# breaks with the environment.

from __future__ import annotations

import argparse
import ast
import os
import re
from pathlib import Path

from mmgap.configs import is_old_name, shipped_config, shipped_configs, shipped_folder
from mmgap.files import write_bytes


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', nargs='?', help='the one to copy; all are listed without')
    parser.add_argument(
        '--out', type=Path, help='folder of the copy, made if missing (default: configs)'
    )
    args = parser.parse_args()
    if args.out is not None and args.name is None:
        parser.error(f'--out {args.out} is where a copy goes; name the config to copy')
    return args


def about(path: Path) -> str:
    """The first sentence of a config's comment, as far as its first colon; empty if it has none."""
    text = ''
    for line in path.read_text(encoding='utf-8').splitlines():
        if not line.startswith('# '):
            break
        if 'SPDX' not in line and not line.startswith('#  '):  # commands stand further in
            text += f' {line[2:]}'
    return re.split(r'[.:](?: |$)', text.strip(), maxsplit=1)[0]


def bases(path: Path) -> list[Path]:
    """The files that a config names in ``_base_``, without those of other packages."""
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_base_':
            names = ast.literal_eval(node.value)
            listed = [names] if isinstance(names, str) else names
            return [path.parent / name for name in listed if '::' not in name]
    return []


def with_bases(path: Path) -> list[Path]:
    """A config and all that it inherits from in its package, each once."""
    found = [Path(os.path.normpath(path))]
    for file in found:  # which grows meanwhile
        files = (Path(os.path.normpath(base)) for base in bases(file))
        found += [base for base in files if base not in found]
    return found


def copy_config(path: Path, out: Path) -> Path:
    """Copy a shipped config and its bases.

    Args:
        path: Its file.
        out: The folder that stands for that of the shipped configs.

    Returns:
        The copy of the config itself.

    Raises:
        FileExistsError: If a file is in the way that says something else. Then nothing is written.
    """
    folder = shipped_folder()
    copies = {out / file.relative_to(folder): file.read_bytes() for file in with_bases(path)}
    others = [
        str(copy) for copy, text in copies.items() if copy.exists() and copy.read_bytes() != text
    ]
    if others:
        raise FileExistsError(
            f'{", ".join(others)} would be overwritten, and differs from what mmgap ships; '
            'choose another --out, or move it away'
        )
    for copy, text in copies.items():
        if not copy.exists():
            write_bytes(copy, text)
            print(f'wrote {copy}')
    return next(iter(copies))


def main() -> None:
    """List the shipped configs, or copy one."""
    args = parse_args()
    if args.name is None:
        found = shipped_configs().items()
        configs = {name: path for name, path in found if not is_old_name(path)}
        width = max(map(len, configs))
        for name, path in configs.items():
            print(f'{name:<{width}}  {about(path)}')
        print('\n`mmgap configs NAME` copies one to change it; `mmgap train NAME` runs it as it is')
        return
    try:
        copy = copy_config(shipped_config(args.name), args.out or Path('configs'))
    except (FileNotFoundError, FileExistsError) as error:
        raise SystemExit(str(error)) from error
    print(f'change it, then: mmgap train {copy}')
