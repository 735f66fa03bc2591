# SPDX-License-Identifier: Apache-2.0
"""Give mmgap bad inputs, and look what it says and leaves: python -m tests.soak.faults --out DIR.

Each must end with a message that names the thing and the way out, without a traceback, and leave
nothing half-written; what mmgap can take must give the right result. Writes DIR/faults.json and
DIR/faults.md after each case; ends with 1 if one has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', MPLBACKEND='agg')
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # these are no questions of speed

from mmgap.files import write_bytes, write_json
from tests.soak.stage import CASES, Case, Shared, run_case

MODULES = ('commands', 'config', 'data', 'images', 'pool', 'weights', 'disk')
SHOWN = 200  # characters of a message in the table


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, help='folder of the results')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these cases alone')
    parser.add_argument(
        '--resume', action='store_true', help='leave out cases that have gone well in --out'
    )
    parser.add_argument('--list', action='store_true', help='print the cases and end')
    args = parser.parse_args()
    for module in MODULES:
        import_module(f'tests.soak.cases_{module}')
    unknown = [name for name in args.only or () if name not in CASES]
    if unknown:
        parser.error(f'--only {unknown} are no cases; --list prints those there are')
    return args


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results in Markdown."""
    failed = [one for one in results if one['fault'] is not None]
    lines = [
        f'# {len(results)} bad inputs, {len(failed)} of them a fault of mmgap',
        '',
        '| input | command | what it says | clean folder |',
        '|---|---|---|---|',
    ]
    for one in results:
        said = ' '.join(one['says'].split()).replace('|', '\\|')
        if len(said) > SHOWN:
            said = f'{said[: SHOWN - 1]}…'
        mark = '' if one['fault'] is None else '**FAULT** '
        clean = 'no' if one['litter'] else 'yes'
        lines.append(f'| {mark}{one["input"]} | `{one["command"]}` | {said} | {clean} |')
    for one in failed:
        lines += ['', f'## {one["name"]}', '', '```', one['fault'], '```']
    return '\n'.join(lines) + '\n'


def set_up() -> None:
    """What the tests' own set-up does: few threads, and configs that are not laid out."""
    import torch
    from mmengine.config import config as configs

    torch.set_num_threads(1)
    configs.FormatCode = lambda text, **_: (text, True)


def run_cases(cases: Sequence[Case], out: Path, known: dict[str, Mapping[str, Any]]) -> None:
    """Run cases; what is known grows by each, and is written."""
    shared = Shared(out / 'shared')
    for number, one in enumerate(cases, start=1):
        folder = out / 'cases' / one.name
        shutil.rmtree(folder, ignore_errors=True)
        known[one.name] = result = run_case(one, folder.resolve(), shared)
        word = 'ok   ' if result['fault'] is None else 'FAULT'
        said = ' '.join((result['fault'] or result['says']).split())
        print(f'[{number}/{len(cases)}] {word} {one.name}: {said[:SHOWN]}', flush=True)
        if result['fault'] is None:
            shutil.rmtree(folder, ignore_errors=True)
        results = [known[name] for name in CASES if name in known]
        write_json(out / 'faults.json', results)
        write_bytes(out / 'faults.md', table(results).encode())


def main() -> None:
    """Run what is asked for."""
    args = parse_args()
    if args.list:
        print('\n'.join(f'{one.name}: {one.input} ({one.command})' for one in CASES.values()))
        return
    out, known = args.out.resolve(), {}
    if (out / 'faults.json').exists():
        known = {one['name']: one for one in json.loads((out / 'faults.json').read_text())}
    done = {name for name, one in known.items() if args.resume and one['fault'] is None}
    cases = [
        one for name, one in CASES.items() if name in (args.only or CASES) and name not in done
    ]
    if not args.only and not args.resume:
        known = {}
    set_up()
    began, cpu = time.time(), time.process_time()
    run_cases(cases, out, known)
    failed = [name for name, one in known.items() if one['fault'] is not None and name in CASES]
    print(
        f'{len(cases)} cases in {time.time() - began:.0f} s ({time.process_time() - cpu:.0f} s of '
        f'a core), {len(failed)} faults {failed}; see {out / "faults.md"}'
    )
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
