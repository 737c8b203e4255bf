"""Composition scores: which later heads read what a component writes, from weights alone.

``scores``       :class:`~talking_heads_utils.scores.scores.CompositionScores`: to compute, look up, save and load
``composition``  the scores of one reader layer at a time, and their null
``streaming``    those of a checkpoint that does not fit in memory, resumable
``tables``       as frames, and as a parquet table for other programs
``distance``     at a distance between query and key, for rotary positions
"""
