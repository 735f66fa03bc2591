#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what a search step and an image of a config cost; ``--help`` says more."""

from mmgap.checks.cost import main

if __name__ == '__main__':
    main()
