"""The reference engine: GGUF files, quantisation, operations, arithmetics, architectures."""
