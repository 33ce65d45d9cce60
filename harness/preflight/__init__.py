"""The input contract (tokens, positions, weights, model), and the dump itself: checked before any tensor is judged."""
