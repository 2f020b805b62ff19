"""TUNE: how to cut a long track into segments and join their embeddings into one.

Conventions throughout the package: audio is mono float32 in [-1, 1]; times are seconds unless a
name says samples; hidden states are counted from 0 (the front end's output) to the last layer.
Shapes: B batch, N segments or tokens of a track, T frames, L layers, D embedding size, C classes.
"""

__version__ = "0.1.0"
