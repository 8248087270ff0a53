"""The command `facenet` from a checkout: python main.py train --config configs/demo.py.

Without the name of a command it trains, or does what --mode says. python main.py --help lists them.
"""

import sys

from facenet_jax import commands

if __name__ == "__main__":  # processes that it starts import this file under another name
    sys.exit(commands.main(sys.argv[1:]))
