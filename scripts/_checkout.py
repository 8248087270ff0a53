"""Imported first by the scripts: packages and configs come from the checkout they lie in.

`python scripts/x.py` looks beside x.py alone, so `configs` would not be found, and `facenet_jax`
would be the installed one, perhaps of another checkout. `python main.py` has no such problem.
"""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

sys.path.append(os.getcwd())  # where models, losses and data sets of your own may lie
if str(ROOT) not in sys.path[:1]:
    sys.path.insert(0, str(ROOT))
