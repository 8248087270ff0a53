"""The main job on a set rendered here: what `make demo` runs. No GPU, no data set, no download.

Renders vehicles in three modalities as a WMVeID863 tree, then calls main.py, which prepares it as
the data set `rendered`, trains FACENet, evaluates it and exports embeddings.
"""

import argparse
import pathlib
import subprocess
import sys
import time

HOME = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    """Render and train; the exit code of what failed first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", default="configs/demo.py", help="the experiment")
    parser.add_argument("--workdir", help="folder of the run; runs/<name of the config>")
    arguments, rest = parser.parse_known_args()

    train = [sys.executable, "main.py", "--config", arguments.config]
    train += ["--workdir", arguments.workdir] if arguments.workdir else []
    seconds = []
    for command in ([sys.executable, "scripts/render.py", "data/rendered"], train + rest):
        print(f"\n$ {' '.join(['python', *command[1:]])}", flush=True)
        start = time.time()
        code = subprocess.run(command, cwd=HOME, check=False).returncode
        if code:
            return code
        seconds.append(time.time() - start)
    print(f"\nRendering took {seconds[0]:.0f} s, all of main.py {seconds[1]:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
