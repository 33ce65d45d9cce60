"""firstdiff: which tensor of an inference engine is the first to go wrong, and why."""
