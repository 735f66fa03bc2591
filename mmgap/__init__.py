# SPDX-License-Identifier: Apache-2.0
"""Guided Adversarial Prompts for OpenMMLab: find where a vision model fails and train on it.

Importing this package registers nothing by itself and loads neither torch nor diffusers: a config
that names ``type='mmgap.GAPHook'`` makes MMEngine import :mod:`mmgap.registry`, and the registry
imports the modules that it needs when something is looked up.
"""

__version__ = '0.1.0'
