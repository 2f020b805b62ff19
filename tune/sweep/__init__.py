"""W&B sweep files without an account.

python -m tune.sweep sweeps/demo.yaml
"""
