"""From a model and tokens to a trace: llama.cpp, the reference, the user's own engine."""
