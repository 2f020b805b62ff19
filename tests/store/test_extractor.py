"""tune.store.Extractor: what every script sets up to get tracks' rows."""

import numpy as np
import pytest
from conftest import tone
from soundfile import write

from tune.audio.decode import read_audio
from tune.encoders.base import precision_on
from tune.encoders.registry import load_encoder
from tune.segments.rules import parse_rule
from tune.store import Extractor
from tune.store.encode import encode_segments


def test_rows_of_each_rule_are_those_of_the_encoder(tmp_path):
    path = str(tmp_path / "a.wav")
    write(path, tone(3.0, 220), 24_000)
    rules = [parse_rule("1"), parse_rule("full")]
    extractor = Extractor("muq-nano", rules, "2", store=tmp_path / "store", memory_budget="1GB")
    assert not (tmp_path / "store").exists()  # opened when it is first used
    assert (extractor.layers, extractor.encoder.precision) == ([2], "no")
    reports = extractor.encode([path, path])
    assert [report.encoder_passes for report in reports] == [3, 1]
    rows = extractor.rows(path, [report.rows[path] for report in reports])
    samples = read_audio(path, 24_000)
    for row in rows:
        own, _ = encode_segments(samples, row.spans, load_encoder("muq-nano"), [2])
        np.testing.assert_array_equal(row.tokens, own)
    assert [r.encoder_passes for r in extractor.encode([path])] == [0, 0]


def test_what_does_not_fit_is_said_before_anything_is_read():
    for settings, message in (
        ({"rules": [parse_rule("0.05")]}, r"needs at least 0\.1 s"),
        ({"layer": "9"}, "--layer must be last, all, mix or a number from 0 to 0"),
        ({"frame_rate": 101.0}, "--frame_rate must be above 0 and at most 100"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"memory_budget": "much"}, "an amount of memory is a size such as 2GB"),
    ):
        given = {"rules": [parse_rule("10")], **settings}
        with pytest.raises(ValueError, match=message):
            Extractor("mel", **given)


def test_an_encoder_can_be_refused_before_its_layers_are_looked_at():
    def refuse(encoder):
        raise ValueError(f"not {encoder.name}")

    with pytest.raises(ValueError, match="not mel"):
        Extractor("mel", [parse_rule("10")], "9", check=refuse)


def test_precision_on_a_cpu():
    assert precision_on("cpu", "auto") == "no"
    assert precision_on("cpu", "bf16") == "bf16"
