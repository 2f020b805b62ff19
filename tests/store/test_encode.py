"""tune.store.encode: rows of the store from files, whatever the order, the batch or the trouble."""

import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from torch.distributed import HashStore

from tune.audio.processes import DecodeProcesses
from tune.encoders.registry import load_encoder
from tune.segments.rules import SegmentRule
from tune.store import collection
from tune.store import encode as encoding
from tune.store.encode import EncodeReport, encode_segments, encode_tracks
from tune.store.look_ahead import Lookup, Share
from tune.store.store import Store

RULE = SegmentRule(1.0, min_tail_s=0.2)


@pytest.fixture(scope="module")
def nano():
    """The small MuQ, built once."""
    return load_encoder("muq-nano")


@pytest.fixture
def files(tmp_path):
    """Five tracks of different lengths, pitches and sample rates."""
    paths = []
    for i, (seconds, rate) in enumerate(
        [(2.5, 24_000), (3.1, 44_100), (1.0, 8_000), (0.4, 24_000), (2.5, 48_000)]
    ):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, tone(seconds, 110 * (i + 1), rate, seed=i), rate)
        paths.append(str(path))
    return paths


def encode(paths, encoder, folder, rule=RULE, layers=(0, 2, 4), **kwargs):
    """Encode into a store; return the report and each path's row."""
    store = Store(folder)
    collection = store.collection(encoder, list(layers), kwargs.get("frame_rate"))
    report = encode_tracks(paths, encoder, rule, store, collection, **kwargs)
    return report, {p: collection.read(*row) for p, row in report.rows.items()}


def test_permuting_the_files_changes_no_row_by_a_bit(files, nano, tmp_path):
    _, forward = encode(files, nano, tmp_path / "a")
    _, backward = encode(files[::-1], nano, tmp_path / "b")
    for path in files:
        assert forward[path].tokens.tobytes() == backward[path].tokens.tobytes()
    names = [sorted(p.name for p in (tmp_path / s).rglob("*.safetensors")) for s in "ab"]
    assert names[0] == names[1]


def test_a_tracks_row_is_the_same_alone_and_among_others(files, nano, tmp_path):
    _, together = encode(files, nano, tmp_path / "a")
    _, alone = encode(files[1:2], nano, tmp_path / "b")
    np.testing.assert_array_equal(together[files[1]].tokens, alone[files[1]].tokens)


def test_each_segment_is_encoded_at_its_own_length(files, nano, tmp_path):
    report, rows = encode(files, nano, tmp_path / "s")
    row = rows[files[0]]
    assert row.spans == [[0, 24_000], [24_000, 48_000], [48_000, 60_000]]
    samples = soundfile.read(files[0], dtype="float32")[0]
    for (start, end), tokens in zip(row.spans, row.tokens, strict=True):
        expected = nano.embed(samples[None, start:end], [0, 2, 4])[0, 0]
        np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert report.encoder_passes == 3 + 3 + 1 + 1 + 3  # the tail of 0.1 s is dropped
    assert report.audio_seconds == pytest.approx(2.5 + 3.0 + 1.0 + 0.4 + 2.5, abs=1e-3)


def test_what_is_stored_is_not_encoded_again(files, nano, tmp_path):
    encode(files[:3], nano, tmp_path / "s")
    report, rows = encode(files, nano, tmp_path / "s")
    assert report.encoded_tracks == 2
    assert set(rows) == set(files)
    again, _ = encode(files, nano, tmp_path / "s")
    assert (again.encoder_passes, again.encode_seconds, again.audio_seconds) == (0, 0, 0)
    assert again.stored_seconds > 0


def test_all_layers_serve_any_single_one(files, nano, tmp_path):
    _, every = encode(files, nano, tmp_path / "s", layers=range(5))
    report, third = encode(files, nano, tmp_path / "s", layers=[3])
    assert report.encoder_passes == 0
    for path in files:
        np.testing.assert_array_equal(third[path].tokens[:, 0], every[path].tokens[:, 3])


def test_a_segment_longer_than_every_track_shares_the_rows_of_full(files, nano, tmp_path):
    encode(files, nano, tmp_path / "s", SegmentRule(None))
    report, _ = encode(files, nano, tmp_path / "s", SegmentRule(60.0))
    assert report.encoder_passes == 0


def test_the_batch_size_changes_nothing_beyond_rounding(files, nano):
    samples = soundfile.read(files[0], dtype="float32")[0]
    spans = RULE.spans(len(samples), 24_000)
    one, counts = encode_segments(samples, spans, nano, [4], batch_seconds=0.5)
    many, _ = encode_segments(samples, spans, nano, [4], batch_seconds=60)
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert counts == [1, 1, 1]


def test_frames_of_all_segments_are_tokens_in_order(files, nano):
    samples = soundfile.read(files[0], dtype="float32")[0]
    spans = RULE.spans(len(samples), 24_000)
    tokens, counts = encode_segments(samples, spans, nano, [4], frame_rate=5)
    assert counts == [5, 5, 3]  # 25 frames a second in windows of 5, and half a second's 13
    expected = nano.embed(samples[None, 24_000:48_000], [4], frame_rate=5)[0]
    np.testing.assert_allclose(tokens[5:10], expected, atol=1e-5)


def test_a_padded_tail_is_encoded_with_zeros_and_has_a_row_of_its_own(files, nano, tmp_path):
    samples = soundfile.read(files[0], dtype="float32")[0]  # two and a half seconds
    rule = SegmentRule(RULE.length_s, min_tail_s=RULE.min_tail_s, pad=True)
    plain, _ = encode(files[:1], nano, tmp_path / "s")
    report, rows = encode(files[:1], nano, tmp_path / "s", rule)
    assert report.encoded_tracks == 1  # the unpadded row isn't taken for it
    spans = report.rows[files[0]][1]
    assert spans[-1][1] > len(samples) == plain.rows[files[0]][1][-1][1]
    tail = samples[spans[-1][0] :]
    wave = np.concatenate([tail, np.zeros(24_000 - len(tail), np.float32)])
    expected = nano.embed(wave[None], [0, 2, 4])[0, 0]
    np.testing.assert_allclose(rows[files[0]].tokens[-1], expected, atol=1e-5)
    again, _ = encode(files[:1], nano, tmp_path / "s", rule)
    assert again.encoder_passes == 0


def test_out_of_memory_halves_the_batch_and_goes_on(files, nano, monkeypatch, caplog):
    samples = np.tile(soundfile.read(files[0], dtype="float32")[0], 4)
    spans = RULE.spans(len(samples), 24_000)
    expected, _ = encode_segments(samples, spans, nano, [4])
    sizes, embed = [], nano.embed

    def small_memory(audio, *args):
        sizes.append(len(audio))
        if len(audio) > 2:
            raise torch.OutOfMemoryError("pretended")
        return embed(audio, *args)

    monkeypatch.setattr(nano, "embed", small_memory)
    tokens, _ = encode_segments(samples, spans, nano, [4])
    assert sizes[:4] == [10, 5, 2, 2]
    assert "going on with 5 segments a batch" in caplog.text
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_a_segment_that_never_fits_is_a_clear_error(files, nano, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(nano, "embed", no_memory)
    with pytest.raises(ValueError, match=r"a segment of 1\.0 s does not fit"):
        encode_segments(np.zeros(24_000, np.float32), [(0, 24_000)], nano, [4])


def test_a_damaged_row_is_named_and_encoded_again(files, nano, tmp_path, caplog):
    _, good = encode(files[:2], nano, tmp_path / "s")
    row = next((tmp_path / "s").rglob("*.safetensors"))
    data = bytearray(row.read_bytes())
    data[-1] ^= 1
    row.write_bytes(data)
    report, rows = encode(files[:2], nano, tmp_path / "s")
    assert report.damaged == [str(row)]
    assert report.encoded_tracks == 1
    assert str(row) in caplog.text
    for path in files[:2]:
        np.testing.assert_array_equal(rows[path].tokens, good[path].tokens)


def test_bad_files_are_reported_and_good_ones_unchanged(files, nano, tmp_path):
    _, good = encode(files, nano, tmp_path / "a")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"")
    missing = tmp_path / "missing.wav"
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(1), 24_000)
    report, rows = encode([str(bad), *files, str(missing), str(short)], nano, tmp_path / "b")
    reasons = {item["path"]: item["reason"] for item in report.skipped}
    assert reasons[str(bad)] == "empty file (0 bytes)"
    assert reasons[str(missing)] == "no such file"
    assert reasons[str(short)].startswith("too short: 1 samples")
    assert set(rows) == set(files)
    for path in files:
        assert rows[path].tokens.tobytes() == good[path].tokens.tobytes()
    with pytest.raises(ValueError, match=r"bad\.wav: empty file"):
        encode([*files, str(bad)], nano, tmp_path / "b", strict=True)


def test_states_that_are_not_finite_name_the_track(files, tmp_path):
    broken = load_encoder("muq-nano")
    with torch.no_grad():
        broken.model.frontend.linear.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.wav: muq-nano gives NaN"):
        encode(files, broken, tmp_path / "s")
    assert not list((tmp_path / "s").rglob("*.safetensors"))


def test_silence_is_encoded_with_a_warning(nano, tmp_path, caplog):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(36_000), 24_000)
    report, rows = encode([str(path)], nano, tmp_path / "s")
    assert report.silent == [str(path)]
    assert np.isfinite(rows[str(path)].tokens).all()
    assert "digital silence" in caplog.text


def test_the_same_audio_under_two_names_is_encoded_once(files, nano, tmp_path):
    copy = tmp_path / "copy.wav"
    copy.write_bytes((tmp_path / "0.wav").read_bytes())
    report, rows = encode([*files[:1], str(copy)], nano, tmp_path / "s")
    assert report.encoded_tracks == 1
    assert set(rows) == {files[0], str(copy)}


def test_reports_of_several_processes_add_up():
    a = EncodeReport(rows={"x": 1}, skipped=[1], encoder_passes=3, encode_seconds=1.5)
    b = EncodeReport(rows={"y": 2}, skipped=[2], encoder_passes=4, encode_seconds=2.0)
    both = EncodeReport.merged([a, b])
    assert both.rows == {"x": 1, "y": 2}
    assert both.skipped == [1, 2]
    assert (both.encoder_passes, both.encode_seconds) == (7, 3.5)


def test_processes_take_tracks_when_they_are_free_and_each_track_once(tmp_path, monkeypatch):
    """Two that share a queue: one is held up by its first track until the other did the rest."""
    mel, paths = load_encoder("mel"), []
    for i in range(40):
        paths.append(str(tmp_path / f"short {i}.wav"))
        soundfile.write(paths[-1], tone(0.3, 100 + i, seed=i), 24_000)
    _, expected = encode(paths, mel, tmp_path / "alone", layers=[0])
    queue, others = HashStore(), threading.Event()
    reports = [None, None]

    def held_up(path):
        others.wait(60)

    def work(index, on_track):
        share = Share(index, 2, queue)
        reports[index], _ = encode(
            paths, mel, tmp_path / "both", layers=[0], share=share, on_track=on_track
        )

    monkeypatch.setattr(encoding, "UNWRITTEN", 1)
    monkeypatch.setattr(encoding, "DECODE_THREADS", 1)
    slow = threading.Thread(target=work, args=(0, held_up))
    slow.start()
    work(1, lambda path: None)
    others.set()
    slow.join(60)
    done = [set(report.rows) for report in reports]
    assert done[0] | done[1] == set(paths)
    assert not done[0] & done[1]
    assert len(done[1]) > len(done[0]) > 0
    report, rows = encode(paths, mel, tmp_path / "both", layers=[0])
    assert report.encoded_tracks == 0
    for path in paths:
        assert rows[path].tokens.tobytes() == expected[path].tokens.tobytes()


def test_a_report_is_in_the_order_of_the_tracks_whoever_was_done_first():
    shares = [
        EncodeReport(rows={"d": 1, "a": 2}, skipped=[{"path": "c"}], silent=["d"]),
        EncodeReport(rows={"b": 3}, skipped=[{"path": "e"}, {"path": "b"}], silent=["a"]),
    ]
    report = EncodeReport.merged(shares).in_order({path: i for i, path in enumerate("abcde")})
    assert list(report.rows) == ["a", "b", "d"]
    assert [track["path"] for track in report.skipped] == ["b", "c", "e"]
    assert report.silent == ["a", "d"]


@pytest.fixture
def decodings(monkeypatch):
    """Decoding that notes its calls, and how many decoded tracks are in memory at most."""
    seen = {
        "calls": 0,
        "held": weakref.WeakValueDictionary(),
        "most": 0,
        "meet": threading.Barrier(1),
    }
    read, lock = encoding.audio.decode, threading.Lock()

    def noted_read(path, sample_rate, **how):
        with lock:
            seen["calls"] += 1
            meet = seen["calls"] <= seen["meet"].parties
        if meet:  # the first ones go on together, or the barrier breaks
            seen["meet"].wait(30)
        sound = read(path, sample_rate, **how)
        with lock:
            seen["held"][path] = sound.samples
            seen["most"] = max(seen["most"], len(seen["held"]))
        return sound

    monkeypatch.setattr(encoding.audio, "decode", noted_read)
    return seen


def test_several_decode_threads_give_the_same_rows_in_the_same_order(
    files, nano, tmp_path, monkeypatch, decodings
):
    monkeypatch.setattr(encoding, "DECODE_THREADS", 1)
    one, expected = encode(files, nano, tmp_path / "one")
    decodings |= {"calls": 0, "meet": threading.Barrier(4)}
    monkeypatch.setattr(encoding, "DECODE_THREADS", 4)
    several, rows = encode(files, nano, tmp_path / "several")
    assert not decodings["meet"].broken
    assert list(several.rows.items()) == list(one.rows.items())
    for path in files:
        assert rows[path].tokens.tobytes() == expected[path].tokens.tobytes()


def test_decoding_in_processes_changes_no_row_and_no_reason(files, nano, tmp_path, monkeypatch):
    """The same rows, reports and reasons, where a file is damaged and one is missing."""
    damaged, missing = tmp_path / "damaged.wav", str(tmp_path / "missing.wav")
    damaged.write_bytes(Path(files[0]).read_bytes()[:2000])
    paths = [*files, str(damaged), missing]
    monkeypatch.setattr(encoding, "DECODE_THREADS", 2)
    here, expected = encode(paths, nano, tmp_path / "a", decoder=encoding.audio)
    with DecodeProcesses() as processes:
        there, rows = encode(paths, nano, tmp_path / "b", decoder=processes)
    assert there.rows == here.rows
    assert len(rows) == len(files)
    assert there.skipped == here.skipped
    assert len(here.skipped) == 2
    for path in files:
        assert rows[path].tokens.tobytes() == expected[path].tokens.tobytes()
        assert rows[path].notes == expected[path].notes


def test_many_files_are_decoded_in_processes_where_there_are_cores(
    files, nano, tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("decoded in this process")

    monkeypatch.setattr(encoding.audio, "decode", refuse)
    monkeypatch.setattr(encoding, "DECODE_THREADS", 2)
    monkeypatch.setattr(encoding, "MANY_FILES", 1)
    report, _ = encode(files, nano, tmp_path / "s")
    assert report.encoded_tracks == len(files)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_window_bounds_the_decoded_tracks_in_memory(tmp_path, monkeypatch, decodings, threads):
    paths = [str(tmp_path / f"{i:02d}.wav") for i in range(14)]
    for i, path in enumerate(paths):
        soundfile.write(path, tone(0.3, 100 + i, seed=i), 24_000)
    mel = load_encoder("mel")
    embed, ahead = mel.embed, []

    def slow_embed(*args):
        give_up = time.monotonic() + 30
        while not ahead and len(decodings["held"]) < threads + 2 and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(0.02)  # it could get further ahead now, but may not
        ahead.append(len(decodings["held"]))
        return embed(*args)

    monkeypatch.setattr(mel, "embed", slow_embed)
    monkeypatch.setattr(encoding, "DECODE_THREADS", threads)
    report, _ = encode(paths, mel, tmp_path / "s", layers=[0], decoder=encoding.audio)
    assert report.encoded_tracks == len(paths)
    assert ahead[0] == threads + 2
    # The window, and the track just encoded until the next one takes its place.
    assert decodings["most"] <= threads + 3


def test_rows_are_flushed_together(files, nano, tmp_path, monkeypatch):
    """A slow disk, or a server, takes long to flush a row."""
    met = threading.Barrier(2)

    def slow_flush(path):
        if ".safetensors." in path.name:
            met.wait(60)

    monkeypatch.setattr("tune.system.files.flush", slow_flush)
    report, _ = encode(files[:4], nano, tmp_path / "s")
    assert report.encoded_tracks == 4
    assert not met.broken


def test_a_look_up_does_not_wait_for_a_row_that_is_being_flushed(
    files, nano, tmp_path, monkeypatch
):
    report, rows = encode(files[:1], nano, tmp_path / "s")
    content, spans = report.rows[files[0]]
    store = Store(tmp_path / "s")
    lookup = Lookup(store, store.collection(nano, [0, 2, 4], None), nano, RULE)
    flushing, go_on = threading.Event(), threading.Event()

    def slow_flush(path):
        flushing.set()
        go_on.wait(60)

    monkeypatch.setattr("tune.system.files.flush", slow_flush)
    with ThreadPoolExecutor(2) as pool:
        other = "ab" * 32
        written = pool.submit(lookup.write, other, spans[-1][1], rows[files[0]])
        assert flushing.wait(60)
        found = pool.submit(lookup.find, content)
        try:
            assert found.result(60)[0] == spans
        finally:
            go_on.set()
        written.result(60)
        assert lookup.find(other)[0] == spans


def test_a_row_that_was_replaced_while_it_was_read_is_not_deleted(
    files, nano, tmp_path, monkeypatch
):
    """A damaged row is read a second time first: another process may have mended it."""
    report, expected = encode(files[:1], nano, tmp_path / "s")
    store = Store(tmp_path / "s")
    mine = store.collection(nano, [0, 2, 4], None)
    content, spans = report.rows[files[0]]
    (path,) = mine.folder.glob("??/*.safetensors")
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    opened, reads = collection.safe_open, []

    def read_and_mend(file, kind):
        found = opened(file, kind)
        if not reads:
            path.unlink()  # what is read stays what it was
            path.write_bytes(sound)
        reads.append(file)
        return found

    monkeypatch.setattr(collection, "safe_open", read_and_mend)
    row = mine.read(content, spans)
    assert row.tokens.tobytes() == expected[files[0]].tokens.tobytes()
    assert (path.exists(), mine.damaged, len(reads)) == (True, [], 2)


def test_a_second_run_hashes_nothing_though_threads_hashed(files, nano, tmp_path, monkeypatch):
    """The cache of hashes is used by the threads that look tracks up, and by the main one."""
    for path in files:
        os.utime(path, (1e9, 1e9))  # hashes of young files aren't remembered
    store = Store(tmp_path / "s")
    expected = [store.content(path) for path in files[:1]]  # opened by this thread
    collection = store.collection(nano, [0, 2, 4], None)
    encode_tracks(files, nano, RULE, store, collection)
    hashed = []
    monkeypatch.setattr("tune.audio.hashing.content_hash", lambda path: hashed.append(path))
    report = encode_tracks(files, nano, RULE, store, collection)
    assert (report.encoder_passes, hashed) == (0, [])
    assert [report.rows[path][0] for path in files[:1]] == expected


def test_waiting_for_another_process_is_told_once(files, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tune.store.look_ahead.WAIT_S", 0.02)
    mel, store = load_encoder("mel"), Store(tmp_path / "store")
    held = store.claim(store.content(files[0]))
    done = []

    def wait():
        done.append(encode(files[:2], mel, tmp_path / "store", layers=(0,)))

    with caplog.at_level("INFO", "tune"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        deadline = time.monotonic() + 60
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # several looks more
        assert not done
        held.release()
        waiting.join(60)
    assert caplog.text.count("waiting for another process") == 1
    ((_, rows),) = done
    assert len(rows) == 2
