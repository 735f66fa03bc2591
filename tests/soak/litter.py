# SPDX-License-Identifier: Apache-2.0
"""What a command must not leave: halves of files, images without a line, empty folders."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

MANIFEST = 'manifest.jsonl'


class Litter:
    """Compares a folder with what it was.

    Args:
        folder: The folder, as it is now.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = {path: path.lstat().st_mtime_ns for path in folder.rglob('*')}

    def left(self) -> list[str]:
        """What there is now that a command must not leave; paths below the folder."""
        found = {path: path.lstat().st_mtime_ns for path in self.folder.rglob('*')}
        new = [path for path, time in found.items() if self.before.get(path) != time]
        files = [path for path in new if path.is_file()]
        wrong = [path for path in files if path.suffix == '.tmp']
        wrong += [path for path in files if not path.stat().st_size]
        wrong += [path for path in files if path.suffix in ('.png', '.jpg') and not _whole(path)]
        wrong += [path for path in files if _is_broken_json(path)]
        wrong += [
            path
            for path in new
            if path.is_dir() and path not in self.before and not any(path.rglob('*.*'))
        ]
        for manifest in [path for path in found if path.name == MANIFEST]:
            wrong += _without_line(manifest, files)
        return [str(path.relative_to(self.folder)) for path in dict.fromkeys(wrong)]


def _whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True


def _is_broken_json(path: Path) -> bool:
    if path.suffix != '.json' or path.parent.name == 'vis_data':  # MMEngine's has many values
        return False
    try:
        json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return True
    return False


def _without_line(manifest: Path, new: list[Path]) -> list[Path]:
    """New images of a pool that its manifest does not name."""
    named = set()
    for line in manifest.read_bytes().splitlines():
        try:
            named.add(manifest.parent / json.loads(line)['file'])
        except (ValueError, KeyError, TypeError):
            continue
    return [path for path in new if path.parent == manifest.parent / 'images' if path not in named]
