# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import yaml

from mmgap.benchmark.zoo_report import write_report


def test_report_and_metafile_say_what_was_measured(tmp_path):
    cells = [
        dict(model=m, method=k, seed=s, images=8, worst_group=w + s / 10, mean=0.5)
        for m, k, w in [
            ('a', 'none', 0.1),
            ('a', 'gap', 0.4),
            ('b', 'none', 0.2),
            ('b', 'gap', 0.7),
        ]
        for s in (0, 1)
    ]
    losses = {('a', 'a'): 1.0, ('a', 'b'): 2.0, ('b', 'a'): 3.0, ('b', 'b'): 4.0}
    transfers = [
        dict(images_of=r, model=c, seed=s, loss=loss, accuracy=loss / 10, worst_group=loss / 20)
        for (r, c), loss in losses.items()
        for s in (0, 1)
    ]
    meta = dict(command='x', models=dict(a=10**6, b=2 * 10**6), method='gap', budget=8)
    meta.update(layers='all', test='test', data='ToyBirds', config='c.py')
    write_report(tmp_path, cells, transfers, meta, 16)
    text = (tmp_path / 'results.md').read_text()
    assert '| a | 1.00 M | gap | 8 | 45.0 ± 7.1 | 50.0 ± 0.0 |' in text
    assert '| b | 3.00 ± 0.00 | 4.00 ± 0.00 |' in text  # rows: whose images
    (first, second) = yaml.safe_load((tmp_path / 'metafile.yml').read_text())['Models']
    assert first['Name'] == 'gap_a_toybirds' and second['In Collection'] == 'GAP'
    (result,) = second['Results']
    assert result['Metrics']['Worst-group accuracy'] == 75.0
    of_classes = [dict(cell, measure='f1') for cell in cells]
    write_report(tmp_path, of_classes, transfers, meta, 16)
    assert 'F1 of classes in percent on test' in (tmp_path / 'results.md').read_text()
    (first, _) = yaml.safe_load((tmp_path / 'metafile.yml').read_text())['Models']
    assert set(first['Results'][0]['Metrics']) == {'Worst F1 of a class', 'Macro F1'}
    write_report(tmp_path, cells[:5], transfers[:1], meta, 16)  # up to the first of model b
    text = (tmp_path / 'results.md').read_text()
    assert '**Incomplete: 6 of 16 cells.**' in text
    assert '| b | 2.00 M | none | 8 | 20.0 | 50.0 |' in text
    assert '| a | 1.00 |  |' in text and '| b |  |  |' in text
    assert len(yaml.safe_load((tmp_path / 'metafile.yml').read_text())['Models']) == 1
