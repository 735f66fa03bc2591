# SPDX-License-Identifier: Apache-2.0
"""The log file of a command that writes into a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.logging import MMLogger


@contextmanager
def logged(path: Path) -> Iterator[MMLogger]:
    """A logger that also writes to a file, which a command that fails before a word does not leave.

    Args:
        path: The file; its folder is made when missing.
    """
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = MMLogger.get_instance('mmgap', log_file=str(path), log_level='INFO')
    try:
        yield logger
    except BaseException:
        if path.exists() and not path.stat().st_size:
            for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
                logger.removeHandler(handler)
                handler.close()
            path.unlink()
        if new:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()
        raise
