"""Chapter 2: where prompts sit in a channel's subspace, what that place means, and what moving it buys.

``coordinates``  three components chosen by weights alone, points, and what can be read off them
``gains``        accuracy without steering, with one setting, one per place, the oracle; chosen and scored apart
``study``        the chapter's tables for one model
"""
