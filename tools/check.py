#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Look whether a config is ready to run; ``--help`` says more."""

from mmgap.checks.ready import main

if __name__ == '__main__':
    main()
