#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Search prompts against a model; ``--help`` says more."""

from mmgap.cli.errors import run
from mmgap.cli.search import main

if __name__ == '__main__':
    run(main)
