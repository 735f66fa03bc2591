# SPDX-License-Identifier: Apache-2.0
"""Datasets inside of wrappers, and what a wrapper shows of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# What tells two samples apart, as sources of generation.
KEYS = ('img_path', 'mask_path', 'depth_map_path', 'gt_label')


def parts_of(dataset: Any) -> list[Any]:
    """The datasets that a wrapper wraps; none of a dataset that is no wrapper."""
    parts = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]
    return [part for part in parts if hasattr(part, '__len__') and not isinstance(part, str)]


def innermost(dataset: Any) -> Iterator[Any]:
    """The datasets inside of all wrappers; one that is no wrapper itself."""
    parts = parts_of(dataset)
    if not parts:
        yield dataset
    for part in parts:
        yield from innermost(part)


class Distinct:
    """The samples that a wrapped dataset shows, each once, in their first order.

    A wrapper may repeat, join or take a part; what is trained on is what *it* shows.

    Args:
        dataset: A wrapper with MMEngine's ``get_data_info``.

    Attributes:
        numbers: For each place of the wrapper, which of the samples here it shows.

    Raises:
        TypeError: If the wrapper does not tell which samples it shows.
    """

    def __init__(self, dataset: Any) -> None:
        # Of the class: an object may pass on what it does not know to what it wraps, which counts
        # its samples otherwise.
        if not hasattr(type(dataset), 'get_data_info'):
            raise TypeError(
                f'{type(dataset).__name__} wraps the training data and has no get_data_info, so '
                'it cannot be told which images are trained on; give its class '
                'get_data_info(idx), which returns the data info of its own sample idx, or take '
                'the part with indices=[…] of the dataset inside'
            )
        self.dataset = dataset
        found: dict[str, tuple[int, dict[str, Any]]] = {}
        self.numbers = []
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            number, _ = found.setdefault(repr([info.get(key) for key in KEYS]), (len(found), info))
            self.numbers.append(number)
        self._infos = [info for _, info in found.values()]

    @property
    def metainfo(self) -> dict[str, Any]:
        """What is known of all samples."""
        dataset = self.dataset
        while not hasattr(dataset, 'metainfo'):
            dataset = parts_of(dataset)[0]
        return dataset.metainfo

    def __len__(self) -> int:
        return len(self._infos)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The data info of a sample."""
        return dict(self._infos[index])
