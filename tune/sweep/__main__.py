"""python -m tune.sweep: see `tune.sweep.command`."""

from tune.cli.parser import run_script

if __name__ == "__main__":
    from tune.sweep.command import main

    run_script(main)
