# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from PIL import Image

from mmgap.loop.contact_sheet import RoundPictures, write_contact_sheet
from mmgap.report.pictures import cells
from tests.support.pools import picture


def pictures(pairs: int = 9) -> RoundPictures:
    return RoundPictures(
        sources=[picture(i) for i in range(pairs)],
        generated=[picture(50 + i) for i in range(pairs)],
        files=[f'images/{i:06d}.png' for i in range(pairs)],
        classes=['a'] * pairs,
        development={'p': [picture(i) for i in range(3)]},
        titles={'p': 'loss'},
        steps={'p': [0, 4]},
    )


def test_rows_and_strips_hold_the_same_images(tmp_path):
    made = pictures()
    titles = [title for title, *_ in made.rows()]
    assert titles == ['sources', 'generated'] * 2 + ['p: loss']
    assert [len(images) for _, images, _ in made.rows()] == [8, 8, 1, 1, 3]
    assert made.row('p')[2] == ['source', 'step 0', 'step 4']
    assert made.pairs()[3] == {'file': 'images/000003.png', 'class': 'a'}
    made.save(tmp_path)
    pairs = [np.array(image) for image in cells(tmp_path / 'pairs.png', 9, rows=2)]
    for image, expected in zip(pairs, made.sources + made.generated, strict=True):
        assert np.array_equal(image, expected)
    strip = [np.array(image) for image in cells(tmp_path / 'p.png', 3)]
    assert all(np.array_equal(*both) for both in zip(strip, made.development['p'], strict=True))
    write_contact_sheet(tmp_path / 'sheet.png', made)
    assert Image.open(tmp_path / 'sheet.png').height > 5 * 96


def test_without_images_there_are_no_strips(tmp_path):
    RoundPictures().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_large_images_become_small_ones():
    made = pictures().smaller(4)
    assert {image.shape for image in made.sources + made.development['p']} == {(5, 4, 3)}
    assert pictures().smaller().generated[0].shape == (6, 5, 3)  # never larger
    assert made.pairs() == pictures().pairs() and made.steps == {'p': [0, 4]}
