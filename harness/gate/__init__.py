"""A firstdiff.toml, held to limits and to baselines."""
