"""Make the virtual environment of each peer that `speed federated_round` measures.

    python benchmarks/speed/peers/make_venvs.py --folder .peers [--python PYTHON3.11] [pfl ...]

One folder a peer, because their versions of JAX, NumPy and PyTorch exclude each other. What is
there already is left as it is; delete a folder to have it made again.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

# Installed one after another: PyTorch first, alone, so that no peer draws in another build of it.
STEPS: dict[str, list[list[str]]] = {
    "torch": [["torch==2.13.0", "numpy==2.4.6"]],
    "pfl": [["torch==2.13.0"], ["pfl==0.6.0"]],
    "flower": [["torch==2.13.0"], ["flwr[simulation]==1.28.0"]],
    "fedjax": [["fedjax==0.0.17", "jax==0.5.3", "jaxlib==0.5.3", "numpy==1.26.4"]],
}


def make(python: str, folder: Path, steps: list[list[str]]) -> None:
    """Make one environment under a temporary name, so that a broken one is not taken for made."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(unfinished)], check=True)
    for requirements in steps:
        pip = [str(unfinished / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *requirements], check=True)
    unfinished.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".peers"))
    parser.add_argument("--python", default=shutil.which("python3.11") or sys.executable)
    parser.add_argument("peers", nargs="*", default=list(STEPS), metavar="peer")
    args = parser.parse_args()
    for name in args.peers:
        folder = args.folder.resolve() / name
        if folder.exists():
            print(f"{name}: {folder} is there")
            continue
        print(f"{name}: making {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(args.python, folder, STEPS[name])


if __name__ == "__main__":
    main()
