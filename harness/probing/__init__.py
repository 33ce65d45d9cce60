"""Judging an engine that gives nothing but logits, by models of our own making."""
