# SPDX-License-Identifier: Apache-2.0
"""Before the hours begin: is everything in place, and what will it cost?"""
