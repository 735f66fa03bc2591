#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare methods at equal image budgets over seeds; ``--help`` says more."""

from mmgap.benchmark.run import main
from mmgap.cli.errors import run

if __name__ == '__main__':
    run(main)
