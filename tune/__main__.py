"""python -m tune: list every command."""

from tune.cli.commands import show_all

show_all()
