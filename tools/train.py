#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a model of MMPretrain or MMSegmentation; ``--help`` says more."""

from mmgap.cli.errors import run
from mmgap.cli.train import main

if __name__ == '__main__':
    run(main)
