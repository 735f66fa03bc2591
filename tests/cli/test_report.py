# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmgap.cli.report import main
from tests.support.reports import fake_run


def test_the_page_is_made_and_named(tmp_path, capsys):
    fake_run(tmp_path / 'run')
    main([str(tmp_path / 'run')])
    page = tmp_path / 'run' / 'gap' / 'report.html'
    assert capsys.readouterr().out.strip() == str(page) and page.read_bytes()
    main([str(tmp_path / 'run'), '--out', str(tmp_path / 'page.html')])
    assert (tmp_path / 'page.html').read_bytes() == page.read_bytes()


def test_what_is_no_run_is_said_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match='mmgap report: .* has no folder gap'):
        main([str(tmp_path)])
