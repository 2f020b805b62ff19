"""Run W&B sweep files without an account: python -m tune.sweep sweeps/demo.yaml.

config      the sweep file, and the runs that W&B's engine proposes
journal     the runs' states, kept on disk
pool        worker processes, and the loop that hands out runs
worker      one process: runs a script again and again, with one loaded encoder
summary     duplicates of the full track, and the table at the end
command     the command line
"""
