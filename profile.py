"""What a strategy costs: peak memory, time and throughput.

    python profile.py --help

This file bears the name of a standard-library module, which cProfile, and through it torch's
compiler and every optimizer, imports; scripts put the repository root first on the path, so ours
is what they get. Imported, it therefore steps aside for the standard library's module.
"""

import sys

if __name__ != "__main__":
    import importlib.util
    import sysconfig
    from pathlib import Path

    _path = Path(sysconfig.get_path("stdlib"), "profile.py")
    _spec = importlib.util.spec_from_file_location(__name__, _path)
    _module = importlib.util.module_from_spec(_spec)
    # The import system returns whatever stands here once this file has run.
    sys.modules[__name__] = _module
    _spec.loader.exec_module(_module)


def main() -> int:
    """Show the help; the measurements come with the next release."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="profile.py",
        description="Measure what a strategy costs: peak memory, time and throughput. The "
        "measurements are not in this release; train_probe.py writes the cost of each run "
        "(encoder seconds, peak memory, embedding size, store bytes) into its result.json.",
    )
    parser.parse_args()
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main())
