# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from mmgap.report.charts import HEIGHT, POINTS, WIDTH, Line, bars, line_chart, spark, stacked
from mmgap.report.markup import count, number, seconds


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The lines of a chart; it must be well-formed."""
    ElementTree.fromstring(svg)
    lines = re.findall(r'<polyline class="[^"]*" points="([^"]*)"', svg)
    return [[tuple(map(float, p.split(','))) for p in line.split()] for line in lines]


@pytest.mark.parametrize(
    'values',
    [[1.0, 0.5], [3.0] * 7, [-2e4, 1e5, 0.0], [1e-7, 2e-7], [0.0, None, 4.0], [1.5] * 3 + [-0.5]],
)
def test_lines_lie_inside_and_in_order(values):
    (line,) = points(line_chart([Line('a<b', values)], 'loss & step'))
    assert len(line) == sum(value is not None for value in values)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    known = [value for value in values if value is not None]
    for (value, (_, y)), (other, (_, y_other)) in zip(
        list(zip(known, line, strict=True)), list(zip(known, line, strict=True))[1:], strict=False
    ):
        assert (value - other) * (y_other - y) >= 0  # higher values lie higher


def test_long_lines_are_thinned_and_smoothed():
    values = [float(i % 2) for i in range(10_000)]
    faint, smooth = points(line_chart([Line('a', values)], 'loss'))
    assert len(faint) <= POINTS and len(smooth) <= POINTS
    heights = [y for _, y in smooth[10:]]
    assert max(heights) - min(heights) < 10


def test_what_has_no_two_points_has_no_chart():
    assert line_chart([], 'x') == line_chart([Line('a', [1.0]), Line('b', [None])], 'x') == ''
    assert spark(Line('a', [None, 1.0]), 'x') == ''
    assert len(points(spark(Line('a', [2.0, 2.0]), 'x'))) == 1


def test_bars_have_their_shares():
    svg = bars([('before', 0.25), ('after', None), ('after', 3.0)], 2.0)
    ElementTree.fromstring(svg)
    assert re.findall(r'class="(?:before|after)" y="\d+" width="([^"]*)"', svg) == [
        '12.50%',
        '100.00%',
    ]
    svg = stacked([1.0, 3.0])
    ElementTree.fromstring(svg)
    assert re.findall('width="([^"]*)%"', svg) == ['25.00', '75.00'] and 'x="25.00%"' in svg


def test_numbers_and_durations():
    assert [number(v) for v in (None, 3, 12345, -0.0, 0.001, 2.345)] == [
        '–',
        '3',
        '12\u202f345',
        '0.00',
        '&lt;\u202f0.01',
        '2.35',
    ]
    assert number('<b>') == '&lt;b&gt;'
    spans = [seconds(v).replace('\u202f', ' ') for v in (2.04, 47.6, 100, 5999.6, 7200)]
    assert spans == ['2.0 s', '48 s', '1 min 40 s', '1 h 40 min', '2 h 0 min']
    assert (count(1, 'step'), count(2, 'step')) == ('1 step', '2 steps')
