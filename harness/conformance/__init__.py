"""A suite of tiny models, each of which isolates one thing that an engine must get right."""
