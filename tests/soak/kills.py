# SPDX-License-Identifier: Apache-2.0
"""Kill trainings at each of their stages, and see that they end as if nothing had been.

    python -m tests.soak.kills --out runs/soak --minutes 60

Trainings run in forks of this process and tell their stages through shared memory. One that comes
to a stage in which it shall be killed stops there (SIGSTOP), is woken, and gets SIGKILL from
outside a random moment later. A chain of kills and resumes is compared with the same training that
was left alone: weights, optimiser, prompts, images, manifest and report, to the bit. Each chain is
a line of ``kills.jsonl``; called again, the grid goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.board import STAGES
from tests.soak.forked import PATIENCE, Training
from tests.soak.kills_report import QUOTA, write_report
from tests.soak.trainings import CELLS, MODES, Assets, Cell, make_assets, make_training

# Kills of a stage in one chain; of others one, since what is done is not done again.
AT_ONCE = {'training': 4, 'pool reading': 2, 'refit': 3}


@dataclass
class Kill:
    """One SIGKILL.

    Attributes:
        asked: The stage that it was meant for.
        stage: The one that it came in.
        entry: Which of its steps, batches or iterations.
        after: Seconds since the training began or was resumed.
        first: The rank that was killed first.
        resume: Seconds that the next start took until new work; None if it had none to do.
    """

    asked: str
    stage: str
    entry: int
    after: float
    first: int
    resume: float | None = None


@dataclass
class Chain:
    """A training that was killed again and again, and how it ended.

    Attributes:
        cell: Name of its cell.
        mode: Mode of injection.
        number: Which chain of these.
        kills: The kills, in their order.
        outrun: Stages that were over before the kill came.
        different: What is not as in the training that was left alone.
        seconds: All in all.
    """

    cell: str
    mode: str
    number: int
    kills: list[Kill] = field(default_factory=list)
    outrun: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    seconds: float = 0.0


def outcome(work_dir: Path, last: str) -> dict[str, str]:
    """Everything that must be equal, as hashes: weights, prompts, pool, reports, names of files."""
    import torch

    from mmgap.compat import allow_checkpoint_history

    allow_checkpoint_history()
    gap = work_dir / 'gap'
    found: dict[str, bytes] = {}
    checkpoint = torch.load(work_dir / last, weights_only=True)
    for name, tensor in checkpoint['state_dict'].items():
        found[f'weight {name}'] = tensor.numpy().tobytes()
    for index, state in checkpoint['optimizer']['state'].items():
        for name, slot in state.items():
            found[f'optimizer {index} {name}'] = (
                slot.numpy().tobytes() if isinstance(slot, torch.Tensor) else repr(slot).encode()
            )
    for kind in ('prompts/*.safetensors', 'pool/**/*'):
        for file in sorted(gap.glob(kind)):
            if file.is_file():
                found[str(file.relative_to(gap))] = file.read_bytes()
    summary = json.loads((gap / 'summary.json').read_text())
    for about in summary['rounds']:
        about.pop('seconds')
    for key in ('before', 'after', 'rounds', 'images', 'seed', 'injection'):
        found[f'summary {key}'] = json.dumps(summary[key], sort_keys=True).encode()
    names = sorted(str(file.relative_to(gap)) for file in gap.rglob('*') if file.is_file())
    found['names of files'] = '\n'.join(names).encode()
    hidden = sorted(str(f.relative_to(work_dir)) for f in work_dir.rglob('.*') if f.is_file())
    found['half-written files'] = '\n'.join(hidden).encode()
    manifest = (gap / 'pool' / 'manifest.jsonl').read_text().splitlines()
    recipes = [json.loads(line) for line in manifest]
    doubled = len(recipes) - len({(r['source_index'], r['seed'], r['prompt_id']) for r in recipes})
    found['doubled images'] = str(doubled).encode()
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in found.items()}


@dataclass(frozen=True)
class Reference:
    """A training that was left alone.

    Attributes:
        outcome: See :func:`outcome`.
        entries: How often it entered each stage.
        pace: Seconds from an entry of each stage to whatever comes next.
        call: Seconds of an entry alone.
        last: Name of its last checkpoint.
    """

    outcome: dict[str, str]
    entries: dict[str, int]
    pace: dict[str, float]
    call: dict[str, float]
    last: str


def run_reference(cell: Cell, mode: str, assets: Assets, folder: Path) -> Reference:
    """Train once from beginning to end; what was found before is read.

    Raises:
        RuntimeError: If the critic has dropped all images or none, so that it changes nothing.
    """
    file = folder / 'reference.json'
    if file.exists():
        return Reference(**json.loads(file.read_text()))
    work_dir = folder / 'whole'
    _remove(work_dir)
    config, last = make_training(cell, mode, assets, work_dir)
    config.dump(folder / 'whole.py')
    training = Training(folder / 'whole.py', cell.processes, folder, resume=False)
    training.wait()
    manifest = (work_dir / 'gap' / 'pool' / 'manifest.jsonl').read_text().splitlines()
    kept = Counter(json.loads(line)['kept'] for line in manifest)
    if not kept[True] or bool(kept[False]) != cell.critic:
        raise RuntimeError(f'{cell.name}: of {len(manifest)} images {kept[True]} were kept')
    if (work_dir / 'gap_refit.pth').exists():
        last = 'gap_refit.pth'
    board = training.board
    entries = {stage: board.entries(stage) for stage in STAGES[1:]}
    pace = {stage: board.seconds(stage) / max(1, entries[stage]) for stage in STAGES[1:]}
    call = {stage: board.seconds_of_calls(stage) / max(1, entries[stage]) for stage in STAGES[1:]}
    made = Reference(outcome(work_dir, last), entries, pace, call, last)
    file.write_text(json.dumps(asdict(made)))
    _remove(work_dir)
    return made


def run_chain(
    cell: Cell, mode: str, number: int, wanted: list[str], reference: Reference, paths: Paths
) -> Chain:
    """Train, be killed in each of the wanted stages one after the other, and compare the end."""
    rng, began = random.Random(f'{cell.name} {mode} {number}'), time.monotonic()
    chain = Chain(cell.name, mode, number)
    work_dir = paths.folder / 'cut'
    _remove(work_dir)
    config, _ = make_training(cell, mode, paths.assets, work_dir)
    config.dump(paths.folder / 'cut.py')
    training = Training(paths.folder / 'cut.py', cell.processes, paths.folder, resume=False)
    for stage in wanted:
        # A stage that is asked for again and again shall not be over before the last of them.
        reachable = reference.entries[stage] // (1 + wanted.count(stage))
        entry = rng.randint(1, max(1, min(4, reachable)))
        # Between two entries is where checkpoints are written; the shortest stages need the other.
        delay = rng.uniform(0, rng.choice((reference.pace, reference.call))[stage])
        if not _reach(training, stage, entry, delay):
            chain.outrun.append(stage)
            break
        board = training.board
        came_in, at = board.stage, board.entries(board.stage)
        after = time.monotonic() - training.began
        first = training.kill(rng)
        if chain.kills:
            chain.kills[-1].resume = training.new_work()
        chain.kills.append(Kill(stage, came_in, at, round(after, 3), first))
        training = Training(paths.folder / 'cut.py', cell.processes, paths.folder, resume=True)
    training.wait()
    if chain.kills:
        chain.kills[-1].resume = training.new_work()
    ended = outcome(work_dir, reference.last)
    names = sorted({*ended, *reference.outcome})
    chain.different = [n for n in names if ended.get(n) != reference.outcome.get(n)]
    chain.seconds = round(time.monotonic() - began, 1)
    return chain


def _reach(training: Training, stage: str, entry: int, delay: float) -> bool:
    """Wait until a training is at a moment of a stage; False if it was over before."""
    deadline, board = time.monotonic() + PATIENCE, training.board
    board.wait_in(stage, entry)
    while not board.waits:
        if training.over:
            return False
        if time.monotonic() > deadline:
            training.kill(random.Random(0))
            raise RuntimeError(f'hangs in {board.stage}, and was to come to {stage} {entry}')
        time.sleep(0.0005)
    training.wake()
    time.sleep(delay)
    return not training.over


@dataclass(frozen=True)
class Paths:
    """Where a cell and mode keep their files.

    Attributes:
        folder: Configs, boards, logs and the two work directories.
        assets: What all share.
    """

    folder: Path
    assets: Assets


def plan(done: Counter, cell: Cell, mode: str, reference: Reference) -> list[str]:
    """The stages of the next chain: those that lack kills, in the order of a run."""
    wanted = []
    for stage in STAGES[1:]:
        if not reference.entries[stage]:
            continue
        lacking = QUOTA - done[_key(cell.name, mode, stage)]
        if lacking > 0:
            wanted += [stage] * min(AT_ONCE.get(stage, 1), lacking)
    return wanted


def _key(cell: str, mode: str, stage: str) -> tuple[str, ...]:
    return (cell, stage, mode) if stage == 'training' else (cell, stage)


def counted(chains: list[dict[str, Any]]) -> Counter:
    """Kills of each cell and stage, and of training for each mode."""
    return Counter(
        _key(chain['cell'], chain['mode'], kill['stage'])
        for chain in chains
        for kill in chain['kills']
    )


def grid(cells: list[Cell], modes: list[str]) -> Iterator[tuple[Cell, str]]:
    """All kinds of training, again and again, with another mode in each cell each time."""
    for shift in range(QUOTA * len(modes)):
        for index, cell in enumerate(cells):
            yield cell, modes[(index + shift) % len(modes)]


def main() -> None:
    """Run chains until each stage of each cell has its kills, or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=1e9, help='begin no chain after these')
    parser.add_argument('--cells', help='only cells whose name contains this')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=list(MODES))
    args = parser.parse_args()
    import mmgap  # noqa: F401  once, for all forks

    out = args.out.absolute()
    (out / 'work').mkdir(parents=True, exist_ok=True)
    assets = make_assets(out / 'work' / 'assets')
    cells = [cell for cell in CELLS if args.cells is None or args.cells in cell.name]
    file, began = out / 'kills.jsonl', time.monotonic()
    chains = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for cell, mode in grid(cells, args.modes):
        if time.monotonic() - began > 60 * args.minutes:
            break
        folder = out / 'work' / f'{cell.name}, {mode}'.replace(' ', '_').replace(',', '')
        folder.mkdir(exist_ok=True)
        reference = run_reference(cell, mode, assets, folder)
        wanted = plan(counted(chains), cell, mode, reference)
        if not wanted:
            continue
        number = sum((chain['cell'], chain['mode']) == (cell.name, mode) for chain in chains)
        chain = run_chain(cell, mode, number, wanted, reference, Paths(folder, assets))
        chains.append(asdict(chain))
        with open(file, 'a') as lines:
            lines.write(json.dumps(chains[-1]) + '\n')
        kills = sum(len(one['kills']) for one in chains)
        end = 'equal' if not chain.different else f'DIFFERENT: {chain.different[:3]}'
        print(
            f'{kills} kills | {cell.name}, {mode}: {len(chain.kills)} more in '
            f'{chain.seconds:.0f} s, the end {end}',
            flush=True,
        )
    write_report(out, chains, cells)
    if any(chain['different'] for chain in chains):
        raise SystemExit('some trainings have not ended as if they had not been killed')


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
