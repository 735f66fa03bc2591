# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from mmgap.wrappers import Distinct


class Letters(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(img_path=letter, gt_label=0) for letter in 'abcde']


def test_distinct_samples_and_which_of_them_each_place_shows():
    repeated = dict(type=RepeatDataset, times=2, dataset=dict(type=Letters, indices=[1, 4, 3]))
    shown = ConcatDataset([Letters(indices=[3, 1]), repeated])
    distinct = Distinct(shown)
    assert [distinct.get_data_info(i)['img_path'] for i in range(len(distinct))] == ['d', 'b', 'e']
    assert distinct.numbers == [0, 1, 1, 2, 0, 1, 2, 0]
    paths = [shown.get_data_info(i)['img_path'] for i in range(len(shown))]
    assert [distinct.get_data_info(i)['img_path'] for i in distinct.numbers] == paths


def test_equal_images_with_other_labels_are_others():
    class Labelled(Letters):
        def load_data_list(self) -> list[dict]:
            return [dict(img_path='a', gt_label=label) for label in (0, 1, 0)]

    distinct = Distinct(RepeatDataset(Labelled(), 2))
    assert distinct.numbers == [0, 1, 0] * 2 and len(distinct) == 2


def test_a_wrapper_that_does_not_tell():
    class Silent:
        def __init__(self) -> None:
            self.dataset = Letters()

        def __getattr__(self, name):
            return getattr(self.__dict__['dataset'], name)

    with pytest.raises(TypeError, match='Silent wraps .* and has no get_data_info'):
        Distinct(Silent())
