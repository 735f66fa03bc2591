# SPDX-License-Identifier: Apache-2.0
"""Writes ``hashes.json`` beside the packaged weights: the world's version and SHA-256 per file.

Results that carry these hashes name exactly one world. Run it once, after training.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from common import WEIGHTS, write_meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--weights', type=Path, default=WEIGHTS)
    folder = parser.parse_args().weights
    files = sorted(p for p in folder.rglob('*') if p.is_file() and p.name != 'hashes.json')
    hashes = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    total = sum(p.stat().st_size for p in files)
    write_meta(folder / 'hashes.json', bytes=total, sha256=hashes)
    print(f'{len(files)} files, {total / 2**20:.2f} MB')


if __name__ == '__main__':
    main()
