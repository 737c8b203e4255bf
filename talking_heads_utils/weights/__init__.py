"""The attention weights of a model, processed in a way that is written down.

``heads``        :class:`~talking_heads_utils.weights.heads.HeadWeights` and its processing
``checkpoints``  out of a folder, the Hub or a GGUF file, without loading the model
``gguf``         the tensors and metadata of a GGUF file
``gguf_model``   the whole model and its tokenizer out of one
``packages``     models that come in a package of the package index
``bridge``       out of a TransformerLens ``TransformerBridge``
``families``     how each family of checkpoint lays out its tensors
``rotary``       rotary positions, and their scaling
"""
