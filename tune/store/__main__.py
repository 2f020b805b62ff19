"""python -m tune.store: see `tune.store.command`."""

import sys

from tune.cli.parser import run_script

if __name__ == "__main__":
    from tune.store.command import main

    run_script(lambda: sys.exit(main()))
