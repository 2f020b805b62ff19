"""python -m tune.encoders: see `tune.encoders.check`."""

from tune.cli.parser import run_script

if __name__ == "__main__":
    from tune.encoders.check import main

    run_script(main)
