"""Probe models: GGUF files made of a model's own tensors, whose logits are one of its internal tensors."""
