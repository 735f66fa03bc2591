#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make the masks of a folder of images; see :mod:`mmgap.masks.make`."""

from mmgap.cli.errors import run
from mmgap.masks.make import main

if __name__ == '__main__':
    run(main)
