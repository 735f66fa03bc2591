#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Look whether a config is ready to run; ``--help`` says more."""

from mmgap.checks.ready import main
from mmgap.cli.errors import run

if __name__ == '__main__':
    run(main)
