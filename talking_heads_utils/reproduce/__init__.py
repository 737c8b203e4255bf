"""Every experiment of the chapters on one model, as finished results that the book reads, and the scorecard they make.

``experiments``  what is run
``run``          runs it step by step, going on where it stopped
``store``        keeps it: what results are keyed by, and when they may be shown
``claims``       judges it by fixed rules
``scorecard``    sets all claims and models side by side
"""
