"""Chapter 1: which heads inhibit the name mover, through which components, and what travels in them.

``experiments``    the chapter's experiments, as the catalogue has them
``measures``       what its tables measure of the claims
``circuit``        who does what on IOI, and how much of it runs through those heads
``links``          published links, looked up in the weights
``list_roles``     movers and inhibition heads of the book's own small models, found on lists
``exchange``       how much of an S-inhibition head's effect its components carry, beside their scores: the experiment
``exchange_study`` prompts, twins and orders of components that these share
``shifts``         what exchanges part of a head's write in movers' queries, keys or values
``slider``         one coefficient moved by hand
``says``           whether a component says a place or a token
``attends``        where in running text its head attends when it is large
``quantised``      how far quantising the weights moves composition scores
``basis``          singular vectors against random bases of the same head
``listeners``      which later heads read what the S-inhibition heads write
``prediction``     which components carry the signal, from weights alone, and what reads them off a run
``rivals``         four measures, held against the known links
"""
