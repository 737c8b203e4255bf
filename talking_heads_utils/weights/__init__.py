"""The attention weights of a model, processed in a way that is written down.

``heads``        :class:`~talking_heads_utils.weights.heads.HeadWeights` and its processing
``checkpoints``  out of a folder or the Hub, without loading the model
``bridge``       out of a TransformerLens ``TransformerBridge``
``families``     how each family of checkpoint lays out its tensors
"""
