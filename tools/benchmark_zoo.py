#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare targets: what each gains, and what its images do to the others; ``--help`` says more."""

from mmgap.benchmark.zoo import main
from mmgap.cli.errors import run

if __name__ == '__main__':
    run(main)
