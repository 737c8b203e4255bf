"""In-context learning of y = a x + b: chapter 4.

``family``      a family of functions, its labels' noise, and the exact Bayesian reader over it
"""
