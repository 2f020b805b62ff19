"""python -m tune.segments: see `tune.segments.plot`."""

from tune.cli.parser import run_script

if __name__ == "__main__":
    from tune.segments.plot import main

    run_script(main)
