"""One job from inputs to a verdict in a folder. Prints nothing."""
