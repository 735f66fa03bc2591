# SPDX-License-Identifier: Apache-2.0
"""``tools/``: doors to the commands of mmgap, and scripts that are used once."""

from __future__ import annotations

import pytest

from mmgap.cli.main import COMMANDS
from tests.support.commands import ROOT, run_command

DOORS = {
    'benchmark': 'benchmark',
    'benchmark_zoo': 'zoo',
    'check': 'check',
    'dataset_converters/masks': 'masks',
    'generate': 'generate',
    'measure_cost': 'cost',
    'search_prompts': 'search',
    'test': 'test',
    'train': 'train',
}


@pytest.mark.parametrize('door, command', DOORS.items())
def test_doors_lead_to_the_commands(door, command):
    text = (ROOT / 'tools' / f'{door}.py').read_text()
    module, function = COMMANDS[command][0].split(':')
    assert f'from {module} import {function}\n' in text
    assert text.endswith(f"if __name__ == '__main__':\n    run({function})\n")
    assert len(text.splitlines()) <= 9


def test_caption_instruction(tmp_path):
    """Every caption and every name goes into the text; what cannot be done is said."""
    file = tmp_path / 'captions.txt'
    file.write_text('a landbird in a forest\n\na waterbird on a lake\n')
    options = ['--subject', 'a bird', '--classes', 'landbird', 'waterbird', '--num', 3]
    text = run_command('caption_instruction', file, *options).check()
    assert '- a landbird in a forest\n- a waterbird on a lake' in text
    assert 'Never name landbird or waterbird' in text and 'in 3 short descriptions' in text
    file.write_text('\n')
    empty = run_command('caption_instruction', file, *options)
    assert empty.code != 0 and 'must be positive, got 0 and 3' in empty.output
