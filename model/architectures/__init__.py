"""One file an architecture: the whole forward pass, in the order of the paper."""
