"""Models whose answer is known by construction.

``model``  a whole model with a planted circuit
"""
