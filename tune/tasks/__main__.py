"""python -m tune.tasks: see `tune.tasks.report`."""

from tune.cli.parser import run_script

if __name__ == "__main__":
    from tune.tasks.report import main

    run_script(main)
