"""Chapter 1: what single components of earlier heads do to a mover head, and who these heads are.

``closed_form``    attention and direct logit effect after a change of a mover's input, no forward pass
``effects``        every component of every earlier head: removed, kept alone, flipped, at its mean
``agreement``      what weights predict against what activations show, with three nulls
``concentration``  how many components carry a head's effect
``find_roles``     who does what on IOI where nobody published it: chosen on one half of prompts, measured on the other
``circuit``        how much of the logit difference runs through the heads that were found
``list_roles``     movers and inhibition heads of the small models of lists, and how well weights alone find them
``signal``         is it a place or a token that a component carries?
``corpus``         where in a text a component is active
``study``          the chapter's experiments on one model, and tables that set several models side by side
"""
