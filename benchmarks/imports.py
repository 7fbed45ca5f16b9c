"""What `import ranksearch` costs beside `import torch`, in processes of their own, by turns.

`python benchmarks/imports.py` prints the medians and their quotient.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median


def seconds(code: str) -> float:
    """How long a fresh process takes to run some code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Time both, and print the quotient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    codes = ("import torch", "import ranksearch")
    for code in codes:
        seconds(code)  # which writes the byte code, and brings the files into memory
    taken: dict[str, list[float]] = {code: [] for code in codes}
    for _ in range(options.repeats):
        for code in codes:
            taken[code].append(seconds(code))
    torch, ours = (median(taken[code]) for code in codes)
    print(f"import torch {torch:.2f} s, import ranksearch {ours:.2f} s: {ours / torch:.2f} times as long")


if __name__ == "__main__":
    main()
