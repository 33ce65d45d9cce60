"""Numbers that an engine printed, held against the reference's."""
