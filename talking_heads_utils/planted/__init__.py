"""Models whose answer is known by construction.

``model``    a whole model with a planted circuit
``pair``     one planted channel between two heads
``circuit``  weights with the links of IOI's circuit planted in them, or none
"""
