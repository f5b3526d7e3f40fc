#!/usr/bin/env python3
"""Proves against the built binary what is promised of books, budgets, keys and the import.

  run.py --bin FILE [calls] [budgets] [delete] [import]     all four without a name
  run.py --bin FILE short                                   a small `calls`, under a minute
  run.py --bin FILE langfuse                                ten minutes without Langfuse; SOAK_MINUTES=2: shorter

Prints figures and promises; exits 1 when one is broken. Python's standard library, Postgres and Redis are all
it needs. `scripts/soak.sh` builds, installs and calls this.
"""

import argparse
import pathlib
import random
import resource
import shutil
import sys
import tempfile

import budgets
import calls
import delete
import importing
import langfuse
from stand import Stand, Verdict, say

PARTS = {
    "calls": lambda stand, verdict, seed: calls.soak(stand, verdict, calls.FULL, seed),
    "short": lambda stand, verdict, seed: calls.soak(stand, verdict, calls.SHORT, seed),
    "budgets": budgets.soak,
    "delete": delete.soak,
    "import": importing.soak,
    "langfuse": langfuse.soak,
}
ALL = ["calls", "budgets", "delete", "import"]


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--bin", required=True, type=pathlib.Path)
    ask.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of what is drawn in `calls`")
    ask.add_argument("parts", nargs="*", metavar="|".join(PARTS))
    options = ask.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        ask.error(f"no such part: {', '.join(sorted(unknown))}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    broken = []
    for part in options.parts or ALL:
        print(f"\n== {part}", flush=True)
        directory = pathlib.Path(tempfile.mkdtemp(prefix=f"tollkeeper-soak-{part}-"))
        # Postgres runs as its own user and has to get to its own directory.
        directory.chmod(0o711)
        verdict = Verdict()
        done = False
        try:
            with Stand(options.bin.resolve(), directory) as stand:
                PARTS[part](stand, verdict, options.seed)
            done = not verdict.broken
        finally:
            if done:
                shutil.rmtree(directory, ignore_errors=True)
            else:
                say(f"logs and databases are in {directory}")
        broken += [f"{part}: {text}" for text in verdict.broken]
    print(f"\n{len(broken)} promises broken" if broken else "\nevery promise was kept", flush=True)
    for text in broken:
        print(f"  {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
