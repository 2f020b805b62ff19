"""Search by words: MuQ-MuLan's text tower against muq's own modules, in a tiny model made here."""

import json
import shutil

import numpy as np
import pytest
import torch
from muq.muq_mulan.models.text import TextTransformerPretrained
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

import tune
from tune.embeddings import file_formats as files
from tune.embeddings import similar
from tune.embeddings.columns import SEGMENTS, TRACKS
from tune.embeddings.text_search import nearest_to_text
from tune.encoders.base import EncoderError
from tune.encoders.muq_mulan_text import load_text_tower

WORDS = ("<s>", "<pad>", "</s>", "<unk>", "slow", "sad", "piano", "fast", "loud", "guitar")
TEXT = {
    "dim": 24,
    "tf_depth": 1,
    "max_seq_len": 16,
    "heads": 2,
    "dim_head": 8,
    "attn_dropout": 0.0,
    "ff_dropout": 0.0,
    "ff_mult": 4,
}
LATENT = 12


def make_mulan(folder):
    """A folder as `convert` leaves it, with the text model's configuration and tokenizer below it.

    Returns muq's own text tower and its projection.
    """
    roberta = XLMRobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        pad_token_id=1,
    )
    inner = folder / "xlm-roberta-tiny"
    roberta.save_pretrained(inner)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(inner)
    torch.manual_seed(5)

    class Tower(TextTransformerPretrained):
        """muq's, with XLM-RoBERTa at random instead of the hub's."""

        def _init_pretrained_model(self):
            return XLMRobertaModel(roberta)

    tower = Tower(model_name=str(inner), model_dim=16, **TEXT).eval()
    latents = nn.Linear(TEXT["dim"], LATENT)
    weights = {f"mulan.text.{k}": v.contiguous() for k, v in tower.state_dict().items()}
    weights |= {f"mulan.text_to_latents.{k}": v for k, v in latents.state_dict().items()}
    weights["mulan.audio.proj.weight"] = torch.ones(2, 2)
    save_file(weights, folder / "model.safetensors")
    config = {
        "mulan": {"dim_latent": LATENT},
        "audio_model": {"name": "inner"},
        "text_model": {"name": inner.name, "model_dim": 16},
        "audio_transformer": {},
        "text_transformer": TEXT,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return tower, latents


@pytest.fixture(scope="module")
def mulan(tmp_path_factory):
    """The folder, and muq's own modules."""
    folder = tmp_path_factory.mktemp("mulan")
    return folder, *make_mulan(folder)


def table(vectors, encoder, **strategy):
    """A table of tracks as the encoder makes it."""
    columns = {
        "path": [f"{i}.ogg" for i in range(len(vectors))],
        "duration_s": [60.0] * len(vectors),
        "embedding": [None if v is None else np.asarray(v, np.float32) for v in vectors],
        "reason": ["bad" if v is None else None for v in vectors],
    }
    meta = {
        "encoder": str(encoder),
        "strategy": {"encoder": str(encoder), "layer": "13", "agg": "mean"} | strategy,
    }
    size = next(len(v) for v in vectors if v is not None)
    return files.Embeddings(files.make_table(columns, TRACKS, size), meta, {})


@pytest.mark.parametrize("text", ["slow sad piano", "guitar", "unheard of"])
def test_the_vector_is_that_of_muqs_own_modules(mulan, text):
    folder, tower, latents = mulan
    with torch.inference_mode():
        expected = nn.functional.normalize(latents(tower(raw_texts=[text])), dim=-1)[0]
    found = load_text_tower(str(folder))(text)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_tracks_are_ranked_by_plain_cosine(mulan, rng, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, *_ = mulan
    vectors = [*(rng.normal(size=(20, LATENT)) + 1), None]
    made = table(vectors, folder)
    vector = load_text_tower(str(folder))("slow sad piano").numpy()
    matrix = np.stack(vectors[:-1])
    cosines = matrix @ vector / np.linalg.norm(matrix, axis=1)
    found = tune.search(made, text="slow sad piano", k=5)
    order = np.argsort(-cosines)[:5]
    assert [item["path"] for item in found] == [f"{i}.ogg" for i in order]
    np.testing.assert_allclose([1 - i["distance"] for i in found], cosines[order], atol=1e-5)
    files.write(tmp_path / "e.parquet", made)
    similar.main(["e.parquet", "--text=slow sad piano", "-k=2"])
    out = capsys.readouterr().out
    assert 'most similar to "slow sad piano"' in out
    assert found[0]["path"] in out
    with pytest.raises(ValueError, match="--whiten compares songs: leave it out with --text"):
        similar.main(["e.parquet", "--text=slow", "--whiten"])
    with pytest.raises(SystemExit):
        similar.main(["e.parquet", "1.ogg", "--text=slow"])
    assert "name a SONG, or words by --text" in capsys.readouterr().err


def test_a_text_finds_the_place_in_a_track(mulan):
    folder, *_ = mulan
    tower = load_text_tower(str(folder))
    vector = tower("fast loud guitar").numpy()
    vectors = [-vector, vector, -vector, 0.1 - vector]
    columns = {
        "path": ["a", "a", "b", "b"],
        "content_hash": ["1", "1", "2", "2"],
        "seg": ["10"] * 4,
        "start_s": [0.0, 10.0, 0.0, 10.0],
        "end_s": [10.0, 20.0, 10.0, 20.0],
        "embedding": list(np.stack(vectors)),
    }
    meta = {"encoder": "m", "strategy": {"encoder": str(folder), "layer": "13", "agg": "max"}}
    made = files.Embeddings(files.make_table(columns, SEGMENTS, LATENT), meta, {})
    first, second = nearest_to_text(made, "fast loud guitar", 2, tower)
    assert (first["path"], first["start_s"], first["end_s"]) == ("a", 10.0, 20.0)
    assert first["distance"] == pytest.approx(0, abs=1e-6)
    assert second["distance"] > 1


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("mel", "--text: mel has no text tower, MuQ-MuLan has: .* convert muq-mulan once"),
        ("mine.py:Mine", "mine.py:Mine has no text tower"),
        ("muq-mulan", "its weights aren't here: python -m tune.encoders convert muq-mulan"),
        ("someone/mulan", "its weights aren't here: python -m tune.encoders convert someone/mulan"),
    ],
)
def test_other_encoders_are_refused_with_what_is_needed(encoder, message, rng):
    with pytest.raises(ValueError, match=message):
        nearest_to_text(table(rng.normal(size=(3, LATENT)), encoder), "slow", 1)


def test_other_layers_and_aggregators_are_refused(mulan, rng):
    folder, *_ = mulan
    for size, strategy in ((16, {"layer": "3"}), (LATENT, {"agg": "whitened"})):
        made = table(rng.normal(size=(3, size)), folder, **strategy)
        with pytest.raises(ValueError, match="isn't the space that the encoder shares with text"):
            nearest_to_text(made, "slow", 1)


def test_texts_and_folders_that_do_not_fit(mulan, tmp_path):
    folder, *_ = mulan
    tower = load_text_tower(str(folder))
    for text in (" ", "slow " * 12):
        with pytest.raises(ValueError, match="a text of 1 to 10 tokens is expected"):
            tower(text)
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["mulan.text_to_latents.bias"]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(EncoderError, match="text tower's weights don't fit"):
        load_text_tower(str(broken))
    (broken / "xlm-roberta-tiny" / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match="holds no tokenizer"):
        load_text_tower(str(broken))
    (broken / "xlm-roberta-tiny" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(EncoderError, match="is no XLM-RoBERTa"):
        load_text_tower(str(broken))
