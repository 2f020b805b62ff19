"""Audio files to mono float32: decoding, identifying recordings, finding files.

    decode        files to samples, headers
    file_types    the table of formats: signatures, endings, who reads them
    readers       one open file: libsndfile, FFmpeg (ffmpeg), MPEG and AAC frames (frame_streams),
                  Ogg pages (ogg_pages), the chunks of a wav (riff)
    base          the header, what counts as complete, AudioError
    ends, file_bytes                              where the audio ends; bytes with a memory
    processes     the same in processes, for many files
    downmix       channels to mono
    hashing       hashes of a file's bytes and of its samples
    fingerprint   recordings that sound the same, by their landmarks
    find_files    folders, lists and globs to paths

Samples are in [-1, 1]; lengths are seconds unless a name says samples; rates are Hz.
"""

from tune.system.lazy import lazy_names

PUBLIC = {
    "AudioError": "decode",
    "check_file": "decode",
    "content_hash": "hashing",
    "read_audio": "decode",
    "read_header": "decode",
    "sound_hash": "hashing",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
