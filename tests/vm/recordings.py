# SPDX-License-Identifier: MIT
"""Keeps what the oracle recorded: ``python -m tests.vm newest --suite oracle | python -m tests.vm.recordings FOLDER``.

Each recording becomes ``FOLDER/NAME.json`` as `pagepool.testing.replay` reads it; all other lines pass through.
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from pathlib import Path

from pagepool.testing.replay import Recording, save


def main(folder: Path) -> None:
    """Read standard input to its end."""
    for line in sys.stdin:
        if not line.startswith("RECORDING "):
            print(line, end="", flush=True)
            continue
        _, name, packed = line.split()
        save(Recording(**json.loads(zlib.decompress(base64.b64decode(packed)))), folder / f"{name}.json")
        print(f"{folder / name}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
