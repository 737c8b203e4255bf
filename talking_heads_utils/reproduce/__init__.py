"""Every experiment of the chapters on one model, as finished results that the book reads, and the scorecard they make.

``experiments`` says what is run, ``run`` runs it step by step, ``store`` keeps it, ``claims`` judges it by fixed rules
and ``scorecard`` sets all claims and models side by side.
"""
