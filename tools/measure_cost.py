#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what a search step and an image of a config cost; ``--help`` says more."""

from mmgap.checks.cost import main
from mmgap.cli.errors import run

if __name__ == '__main__':
    run(main)
