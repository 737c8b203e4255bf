"""Figures. Each function takes finished results and returns a plotly figure.

``style``        the palette, and what figures have in common: menus, sliders, error bars
``page``         shows a figure with its caption, in a kernel or on the static page
``data``         what a figure draws, as a table
``heads``        any frame of an ablation, a patch or steering, by one call
``composition``  chapter 1: scores of components, their ranks, the links of a circuit
``inhibition``   chapter 1 and the landing page: what components do to a mover
``roles``        chapter 1: who does what on IOI, who writes to whom, and what runs through these heads
``positional``   chapter 2: where lists sit, what is decoded there, what is interchanged, crowding and order
``traversal``    chapter 2: the point moved by hand, and what that gains
``editing``      chapter 3
``icl``          chapter 4: tasks in context, the post's patching, what heads do alone and together
``icl_evidence``  chapter 4: belief by evidence, and parts
``models``       the page of the models
``power``        the page of the rules
``atlas``        the data that the explorer page draws by itself: scores, and what was measured of heads
"""

from talking_heads_utils.figures.heads import heads

__all__ = ["heads"]
