"""Evaluation protocols on features: pure functions of arrays.

Each names itself and its version in what it returns, so that a figure can be
compared across releases.
"""
