"""What rotations of queries and keys should be, and what an engine's were."""
