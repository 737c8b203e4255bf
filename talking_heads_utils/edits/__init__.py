"""Edits of single components in a model's weights: as data, for a ``with`` block, baked into a checkpoint.

``edits``  an edit as data: components that are scaled, removed, set or rotated; and what that does to weights
``bake``   an edited checkpoint that any tool loads
"""
