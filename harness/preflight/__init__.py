"""The input contract: tokens, positions, weights, model. Checked before any tensor is judged."""
