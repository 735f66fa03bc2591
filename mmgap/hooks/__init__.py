# SPDX-License-Identifier: Apache-2.0
"""Hooks: the only part that knows MMEngine's Runner."""

from mmgap.hooks.gap_hook import GAPHook
from mmgap.hooks.injection_hook import InjectionHook

__all__ = ['GAPHook', 'InjectionHook']
