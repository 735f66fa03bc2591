# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny_pipeline
from tests.support.tiny_search import run_in_a_process


@pytest.mark.slow
def test_killed_search_goes_on(tmp_path, on_cpu):
    save_tiny_pipeline(tmp_path / 'sd')
    run_in_a_process(tmp_path, None)
    expected = {p.name: p.read_bytes() for p in (tmp_path / 'bank').iterdir()}
    (tmp_path / 'search.safetensors').unlink()
    for path in (tmp_path / 'bank').iterdir():
        path.unlink()

    def run(death: int | None) -> int:
        code = (
            'from pathlib import Path; from tests.support.tiny_search import run_in_a_process; '
            f'run_in_a_process(Path({str(tmp_path)!r}), {death})'
        )
        root = Path(__file__).parents[2]
        return subprocess.run([sys.executable, '-c', code], cwd=root, timeout=300).returncode

    assert run(3) == -signal.SIGKILL
    assert not list((tmp_path / 'bank').glob('*'))
    assert run(3) == -signal.SIGKILL  # once more, from where the first one stopped
    assert run(None) == 0
    assert int((tmp_path / 'steps.txt').read_text()) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / 'bank').iterdir()} == expected
