"""Edits of single components in a model's weights: as data, for a ``with`` block, baked into a checkpoint.

``edits``    an edit as data: components that are scaled, removed, set or rotated, and the model it is made for
``algebra``  what a change does to a head's ``W_O`` or ``W_Q``
``bake``     an edited checkpoint that any tool loads
"""
