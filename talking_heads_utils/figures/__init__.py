"""Figures. Each function takes finished results and returns a plotly figure; none runs a model.

``style`` holds the palette, ``page`` shows a figure with its caption, in a kernel or on the static page.
"""
