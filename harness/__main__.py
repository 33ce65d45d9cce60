"""``python -m firstdiff``."""

from firstdiff.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
