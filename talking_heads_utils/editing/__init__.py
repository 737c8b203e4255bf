"""Chapter 3: edits of the weights along single components, applied, baked into a checkpoint, searched for and judged.

``edits``    an edit as data: which components change and how, and the model that it was made for; JSON
``algebra``  what a change does to ``W_O`` or ``W_Q``: pure tensor functions
``apply``    a context manager that edits a loaded model and puts back every bit
``bake``     an edited checkpoint that any tool loads
``upper``    prompts through the edited layers and those above, many scales at once, with gradients
``search``   scales by a grid and by gradients on one objective, random edits by the same search
``harm``     what else an edit changes: other tasks, other text, other heads
``study``    the chapter's tables for one model
"""
