"""Composition scores: which later heads read what a component writes, from weights alone."""
