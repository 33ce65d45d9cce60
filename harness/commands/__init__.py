"""The commands: options in, text and exit code out. Each is a module with a function of its name."""
