"""Edits of single components in a model's weights: as data, for a ``with`` block, baked into a checkpoint.

``edits``    an edit as data: components that are scaled, removed, set or rotated, and the model it is made for
``algebra``  what a change does to a head's ``W_O`` or ``W_Q``
``apply``    a loaded model, edited for the length of a ``with`` block
``bake``     an edited checkpoint that any tool loads
``upper``    prompts through the layers that an edit reaches, with gradients
"""
