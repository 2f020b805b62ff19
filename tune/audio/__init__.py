"""Audio files to mono float32: decoding, what a track is known by, finding files.

Samples are in [-1, 1]; lengths are seconds unless a name says samples; rates are Hz.
"""

from tune.system.lazy import door

PUBLIC = {
    "AudioError": "decode",
    "check_file": "decode",
    "content_hash": "hashing",
    "read_audio": "decode",
    "read_header": "decode",
    "sound_hash": "hashing",
}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
