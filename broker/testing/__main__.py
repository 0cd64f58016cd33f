"""`python -m broker.testing`: see `campaign`, which is a module of its own because its worker processes import it by name."""

from __future__ import annotations

import sys

from broker.testing.campaign import main

if __name__ == "__main__":
    sys.exit(main())
