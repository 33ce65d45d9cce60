"""The graph tier: llama.cpp's own graph as the reference, for architectures that nobody has written out by hand.

A graph is what the eval callback shows of one forward pass: nodes with an operation, its parameters, and the tensors
that it reads (:mod:`firstdiff.model.graph.nodes`). Each operation is a function of this room, of arrays [ne3, ne2, ne1,
ne0] as ggml lays them out, slowest axis first.
"""
