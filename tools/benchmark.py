#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare methods at equal image budgets over seeds; ``--help`` says more."""

from mmgap.benchmark.run import main

if __name__ == '__main__':
    main()
