"""python -m tune.store: see `tune.store.command`; encode is `tune.tasks.encode_shard`."""

import importlib
import sys

from tune.cli.parser import run_script


def main() -> None:
    """Run a verb; encode is a later package's, which knows tasks."""
    if sys.argv[1:2] == ["encode"]:
        importlib.import_module("tune.tasks.encode_shard").main(sys.argv[2:])
    else:
        sys.exit(importlib.import_module("tune.store.command").main())


if __name__ == "__main__":
    run_script(main)
