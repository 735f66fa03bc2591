# SPDX-License-Identifier: Apache-2.0
"""``python -m mmgap COMMAND …`` does what ``mmgap COMMAND …`` does, also under torchrun."""

from mmgap.cli.main import main

if __name__ == '__main__':
    main()
