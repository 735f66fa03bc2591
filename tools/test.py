#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint on the config's test data; ``--help`` says more."""

from mmgap.cli.errors import run
from mmgap.cli.test import main

if __name__ == '__main__':
    run(main)
