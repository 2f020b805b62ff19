"""How a track is cut: at a fixed length, or where the music changes.

rules       fixed lengths, the full track, and reading --seg
structure   boundaries where the music changes (--seg structure)
pick        some of a track's segments (--use_seconds, --pick)
plot        python -m tune.segments plot song.mp3
"""

from tune.system.lazy import lazy_names

PUBLIC = {"Rule": "rules", "StructureRule": "structure", "parse_rule": "rules"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
