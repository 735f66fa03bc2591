# SPDX-License-Identifier: Apache-2.0
"""``mmgap report``: make the page of a run again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmgap.report import write_page


def main(args: Sequence[str] | None = None) -> None:
    """Read a work directory, write its page and say where it is.

    Args:
        args: Of the command line; by default those of the process.
    """
    parser = argparse.ArgumentParser(
        prog='mmgap report',
        description='Make gap/report.html of a run again, finished or not, from what is in its '
        'work directory. Needs no model and no data.',
    )
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work directory of the run')
    parser.add_argument('--out', help='HTML file (default: WORK_DIR/gap/report.html)')
    options = parser.parse_args(args)
    try:
        print(write_page(options.work_dir, options.out))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'mmgap report: {error}') from error


if __name__ == '__main__':
    main()
