# SPDX-License-Identifier: Apache-2.0
"""Numbers, words and tables as HTML. Whatever comes from a run goes through :func:`text`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

DASH = '\N{EN DASH}'
SPACE = '\N{NARROW NO-BREAK SPACE}'


def text(value: Any) -> str:
    """Any value as words that are no markup."""
    return escape(str(value))


def number(value: Any, digits: int = 2) -> str:
    """A number with its digits; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return DASH if value is None else text(value)
    if isinstance(value, int):
        return f'{value:,}'.replace(',', SPACE)
    if 0 < abs(value) < 10**-digits / 2:
        return f'&lt; {10**-digits:g}' if value > 0 else f'&gt; -{10**-digits:g}'
    # A negative zero says nothing to anyone.
    return f'{value + 0.0 if round(value, digits) else 0.0:.{digits}f}'


def count(value: float, one: str, many: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f'{number(round(value))} {one if value == 1 else many or one + "s"}'


def seconds(value: float) -> str:
    """A duration as people say it."""
    if value < 100:
        return f'{value:.{1 if value < 10 else 0}f}{SPACE}s'
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f'{minutes}{SPACE}min {rest}{SPACE}s'
    hours, minutes = divmod(minutes, 60)
    return f'{hours}{SPACE}h {minutes}{SPACE}min'


def percent(value: float, digits: int = 1) -> str:
    """A share of one."""
    return f'{100 * value:.{digits}f}{SPACE}%'


def facts(rows: Sequence[tuple[str, str]], css: str) -> str:
    """Names and values, which stay together where lines break. Both are HTML."""
    said = ''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in rows)
    return f'<dl class="{css}">{said}</dl>' if said else ''


def table(head: Sequence[str], rows: Sequence[Sequence[str]], css: str = '') -> str:
    """A table; all but the first column are numbers. Cells are HTML."""
    top = ''.join(f'<th>{cell}</th>' for cell in head)
    body = ''.join(f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in rows)
    return (
        f'<div class="wide"><table class="{css}"><thead><tr>{top}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>'
    )


def note(words: str, kind: str = 'note') -> str:
    """A remark; ``words`` are HTML."""
    return f'<p class="{kind}">{words}</p>'
