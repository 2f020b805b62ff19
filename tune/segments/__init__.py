"""Where a track is cut: rules of a fixed length, or where the music changes.

python -m tune.segments plot song.mp3
"""

from tune.system.lazy import door

PUBLIC = {"Rule": "rules", "StructureRule": "structure", "parse_rule": "rules"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
