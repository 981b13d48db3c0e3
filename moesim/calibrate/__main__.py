"""``python -m moesim.calibrate``."""

import sys

from moesim.calibrate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
