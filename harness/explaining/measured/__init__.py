"""What an operation did, measured: which of its parts it used and how, where no hypothesis of the table says it."""
