#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw labelled images with prompts into a sample pool; ``--help`` says more."""

from mmgap.cli.errors import run
from mmgap.cli.generate import main

if __name__ == '__main__':
    run(main)
