"""What a difference looks like that no hypothesis explains."""
