"""The stranger's package `lab` is found as a stranger's is: its folder is on the path."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
