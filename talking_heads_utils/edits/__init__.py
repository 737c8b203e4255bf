"""Edits of single components in a model's weights: as data, for a with block, baked into a checkpoint."""
