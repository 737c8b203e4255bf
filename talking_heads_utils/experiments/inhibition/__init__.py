"""Chapter 1: which heads inhibit the name mover, through which components, and what travels in them.

``experiments``    the chapter's experiments, as the catalogue has them
``measures``       what its tables measure of the claims
``circuit``        how much of IOI runs through the heads that were found
``links``          published links, looked up in the weights
``roles_on_ioi``   who does what on IOI, as rows
``list_roles``     movers and inhibition heads of the book's own small models, found on lists
``exchange``       how much of an S-inhibition head's effect its components carry: the experiment
``exchange_study`` prompts, twins and orders of components that the next three share
``shifts``         what exchanges part of a head's write in movers' queries, keys or values
``effects_table``  scores and effects by component
``slider``         one coefficient moved by hand
``coefficients``   what reads components' coefficients off a run
``says``           whether a component says a place or a token
``attends``        where in running text its head attends when it is large
``quantised``      how far quantising the weights moves composition scores
``basis``          singular vectors against random bases of the same head
``listeners``      which later heads read what the S-inhibition heads write
``prediction``     which components carry the signal, from weights alone
``rivals``         four measures, held against the known links
"""
