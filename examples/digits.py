"""Writes scikit-learn's handwritten digits as PNG files, a folder for each class, where digits.yaml finds them.

python examples/digits.py && dstj run examples/digits.yaml
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLAIM = Path(__file__).resolve().parent / "digits"
FULL = 16  # the strokes' value of full ink
FIFTH = 5  # every fifth digit of a class is held out


def main(claim: Path) -> None:
    shutil.rmtree(claim, ignore_errors=True)
    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    for pixels, digit in zip(digits.images, digits.target.tolist(), strict=True):
        split = "validation" if seen[digit] % FIFTH == 0 else "train"
        file = claim / split / str(digit) / f"{seen[digit]:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * 255 / FULL).astype(np.uint8)).save(file)
        seen[digit] += 1
    print(f"wrote {sum(seen.values())} pictures below {claim}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else CLAIM)
