"""Counts runs in which a rank fails among chatty ones: ``python tests/tools/chatty.py ROUNDS [KIND...]``.

For each kind, how many of the runs told the right rank with its own words, the same on every node. Exits with 1 where
one did not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.frameworks.chatty import CALLS, round_of

END_S = 180.0


def main(rounds: int, kinds: list[str]) -> int:
    right_everywhere = True
    os.environ.setdefault("METAFLOW_USER", "tester")
    os.environ.update(METAFLOW_DEFAULT_DATASTORE="local", METAFLOW_DEFAULT_METADATA="local")
    for kind in kinds:
        right = 0
        for number in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["METAFLOW_DATASTORE_SYSROOT_LOCAL"] = folder
                wrong = round_of(kind, Path(folder), END_S)
            right += not wrong
            if wrong:
                print(f"{kind}, round {number}: {'; '.join(wrong)}", flush=True)
        print(f"{kind}: {right} of {rounds}", flush=True)
        right_everywhere &= right == rounds
    return 0 if right_everywhere else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:] or list(CALLS)))
