"""``python -m gateway`` is ``comfy-gateway``. Owns nothing but that."""

import sys

from gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
