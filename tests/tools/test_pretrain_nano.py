"""tools/muq_nano/pretrain_nano.py as its users run it, and the music that it learns from."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_task, run
from muq_nano import composed, mel_corpus, mel_tokens, nano, nano_music, nano_orders
from muq_nano import pretrain_nano as script
from safetensors.torch import load_file, save_file

from tune.audio.hashing import content_hash
from tune.demo import DEMO_TASKS, build, recipes
from tune.demo.tasks import make_track
from tune.encoders.registry import load_encoder
from tune.tasks.load import load_task

SCRIPT = ROOT / "tools" / "muq_nano" / "pretrain_nano.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Demo tasks of two tracks a split, a task of tones, and spectrograms that all share."""
    folder = tmp_path_factory.mktemp("nano")
    for name in DEMO_TASKS:
        made = build(name, folder / "demo", workers=1, progress=False, limit=2)
        made.rename(made.with_name(made.name.removesuffix("-limit2")))
    make_task(folder / "tones", seconds=3, n=(3, 2, 2))
    return folder


@pytest.fixture
def flags(folder):
    """What all runs here share: four songs, eight steps."""
    return [
        "--songs=4",
        "--steps=8",
        "--save_every=4",
        "--seconds",
        "1",
        "2",
        "--batch_seconds=4",
        "--lr=3e-3",
        "--warmup=2",
        "--track_from=3",
        "--order_from=4",
        "--order_every=2",
        "--order_seconds",
        "3",
        "--val_crops=2",
        "--workers=1",
        "--corpus",
        folder / "corpus",
        "--cache_dir",
        folder / "demo",
        "--tasks",
        folder / "tones",
    ]


@pytest.fixture
def main(monkeypatch, flags):
    """A function that runs main() in this process."""
    monkeypatch.setattr(script, "set_up_logging", lambda is_main: None)  # it's for processes

    def call(out, *more):
        argv = [str(flag) for flag in (*flags, "--out", out, *more)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv])
        script.main(script.parse_args(argv))
        return json.loads((out / "pretrain.json").read_text())

    return call


@pytest.mark.slow
def test_a_run_learns_and_one_that_was_cut_off_ends_the_same(folder, flags, main, monkeypatch):
    done = run(SCRIPT, *flags, "--out", folder / "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "2,361,216 parameters; 6 tracks" in done.stdout  # three songs, three tones
    assert "chance: accuracy" in done.stdout
    facts = json.loads((folder / "whole" / "pretrain.json").read_text())
    assert facts["command"].startswith("tools/muq_nano/pretrain_nano.py --songs=4")
    first, last = facts["history"]
    assert (first["step"], last["step"]) == (4, 8)
    assert last["train/loss"] < first["train/loss"] < np.log(256) + 0.5
    assert first["train/order_loss"] == 0 < last["train/order_loss"]
    assert not (folder / "whole" / "state").exists()

    ours, drawn = nano_music.Crops.__getitem__, []

    def cut_off(crops, step):
        drawn.append(step)
        if step == 6:
            raise KeyboardInterrupt
        return ours(crops, step)

    monkeypatch.setattr(nano_music.Crops, "__getitem__", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main(folder / "parts")
    monkeypatch.setattr(nano_music.Crops, "__getitem__", ours)
    with pytest.raises(ValueError, match=r"unfinished run with other settings: --lr 0.003 \(now"):
        main(folder / "parts", "--lr=1e-4")
    again = main(folder / "parts")
    assert drawn == [0, 1, 2, 3, 4, 5, 6]
    for before, after in zip(facts["history"], again["history"], strict=True):
        assert {k: v for k, v in before.items() if k != "seconds"} == {
            k: v for k, v in after.items() if k != "seconds"
        }
    whole, parts = (load_file(folder / n / "model.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    with pytest.raises(ValueError, match="holds a finished model"):
        main(folder / "parts")
    encoder = load_encoder(str(folder / "parts"))  # what it leaves is an encoder
    assert not encoder.untrained
    assert encoder.embed(np.zeros((1, 24_000), np.float32), [4]).shape == (1, 1, 1, 192)


def test_only_the_train_split_of_a_task_is_learnt_from(folder, tmp_path):
    music = nano_music.gather(
        folder / "corpus",
        6,
        4,
        [str(folder / "tones")],
        data_dir=tmp_path,
        cache_dir=folder / "demo",
        progress=False,
    )
    task = load_task(str(folder / "tones"), tmp_path, cache_dir=tmp_path)
    known = {s: {content_hash(p) for p in task.splits[s]["path"]} for s in task.splits}
    learnt = {music.tracks.content_hashes[i] for i in music.train}
    assert known["train"] <= learnt
    assert not learnt & (known["val"] | known["test"])
    assert not set(music.train) & set(music.val)
    assert music.facts["held_out_checked"] == 4 * len(
        DEMO_TASKS
    )  # two val, two test tracks of each


def test_a_song_that_a_task_holds_out_is_refused(folder):
    demo = load_task("demo", folder, cache_dir=folder / "demo", progress=False)
    refused = composed.held_out([demo])
    _, _, audio = make_track("demo", 70)  # the first of val
    samples = np.round(audio * 32767).astype(np.int16)
    assert refused[composed.samples_hash(samples)] == "demo"
    _, song_hash = composed.compose(6, 1)
    assert song_hash not in refused
    with pytest.raises(ValueError, match="in the val or test split of demo-x: choose another"):
        mel_corpus.build_composed(folder / "corpus", 6, 4, {song_hash: "demo-x"})


def test_composed_songs_depend_on_seed_and_number_alone():
    audio, song_hash = composed.compose(6, 4)  # sections in any order
    again, same = composed.compose(6, 4)
    np.testing.assert_array_equal(audio, again)
    assert song_hash == same
    assert composed.compose(7, 4)[1] != song_hash
    assert (audio.dtype, len(audio)) == (np.float32, 60 * 24_000)
    assert 0.01 < np.abs(audio).max() <= 1


def test_composing_in_the_process_that_trains_leaves_its_threads(tmp_path, monkeypatch):
    seen, threads = [], torch.get_num_threads()

    def compose(seed, index):
        seen.append(torch.get_num_threads())
        return np.zeros(24_000, np.float32), str(index)

    monkeypatch.setattr(mel_corpus, "compose", compose)
    torch.set_num_threads(2)
    try:
        mel_corpus.build_composed(tmp_path, 6, 2, {}, workers=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 1]


def test_a_mixture_of_styles_whose_form_fits_no_tempo_is_drawn_anew():
    with pytest.raises(recipes.NoFormFitsError, match="no form fits 30 beats a minute in 4/4"):
        recipes.choose_form(None, 30, 4, (16,))
    audio, _ = composed.compose(6, 1409)  # its first draw is one of those
    assert 45 < len(audio) / 24_000 < 90


def test_spectrograms_are_muqs_own_input_and_semitones():
    seconds = np.arange(48_000 + 100) / 24_000
    audio = (0.1 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    mel, pitch = mel_corpus.spectrograms(audio)
    assert (mel.shape, pitch.shape) == ((200, 128), (50, 72))
    assert (pitch[5:45].argmax(1) == 33).all()  # A4 above C2
    front = load_encoder("muq-nano-untrained").model.frontend
    padded = torch.nn.functional.pad(torch.from_numpy(audio)[None], (1024, 1024), mode="reflect")
    expected = front._mel(padded, 0, 200)[0].T * front.std + front.mean
    np.testing.assert_allclose(mel, expected.clamp(min=-100), atol=0.04)  # float16


def test_hidden_frames_show_noise_and_nothing_of_the_music(folder, tmp_path):
    music = nano_music.gather(
        folder / "corpus", 6, 4, [], data_dir=tmp_path, cache_dir=folder / "demo", progress=False
    )
    tokens = [np.zeros((n, 9), np.uint8) for n in music.tracks.lengths]
    crops = nano_music.Crops(music, tokens, [4], 12, 0.6, seed=5)
    one = crops[3]
    assert one["mel"].shape == (3, 400, 128)
    assert one["masked"].shape == (3, 60)  # six of ten spans of 0.4 s
    assert not one.pop("pairs")
    assert all(torch.equal(one[k], crops[3][k]) for k in one)
    assert not torch.equal(one["mel"], crops[4]["mel"])
    # Other music at the same places: what differs is what can be seen.
    crops.music.tracks.mel = lambda track, first, last: np.zeros((400, 128), np.float16)
    other = crops[3]
    differs = (one["mel"] != other["mel"]).any(2).view(3, 100, 4).any(2)
    masked = torch.zeros(3, 100, dtype=torch.bool).scatter_(1, one["masked"], True)
    assert torch.equal(differs, ~masked)


def test_crops_come_in_pairs_of_a_song_from_a_step_on(folder, tmp_path):
    music = nano_music.gather(
        folder / "corpus", 6, 4, [], data_dir=tmp_path, cache_dir=folder / "demo", progress=False
    )
    tokens = [np.full((n, 9), i, np.uint8) for i, n in enumerate(music.tracks.lengths)]
    crops = nano_music.Crops(music, tokens, [2], 8, 0.6, seed=5, pairs_from=10)
    assert not crops[9]["pairs"]
    batch = crops[10]
    songs = batch["tokens"][:, 0, 0]  # the song's number stands for its tokens here
    assert batch["pairs"]
    assert torch.equal(songs[:2], songs[2:])
    assert songs[0] != songs[1]


def test_recognising_a_song_is_a_softmax_over_the_other_crops():
    projections = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    # Alike are 0 and 2, 1 and 3: 10 against two zeros.
    expected = -np.log(np.exp(10) / (np.exp(10) + 2))
    assert nano.nt_xent_loss(projections).item() == pytest.approx(expected, abs=1e-6)
    assert nano.nt_xent_loss(projections[[0, 1, 3, 2]]).item() == pytest.approx(
        10 + expected, rel=1e-4
    )


def test_examples_of_a_group_are_the_same_pieces_in_several_orders(rng, monkeypatch):
    class Tracks:
        """Three tracks of four seconds, in which a value tells the track, the next its frame."""

        lengths = (100, 100, 100)

        def mel(self, track, first, last):
            frames = np.repeat(np.arange(first, last), 4)
            return np.stack([np.full(len(frames), track), frames], 1).astype(np.float16)

    monkeypatch.setattr(nano_orders, "LEVEL_DB", 0)
    seen = set()
    for _ in range(10):
        batch = nano_orders.draw(Tracks(), [0, 1, 2], 3, rng)  # four groups of eight examples
        assert (batch["mel"].shape, batch["orders"]) == ((32, 300, 2), 4)
        for group in batch["mel"].unflatten(0, (4, 2, 4)):
            pieces = group.unflatten(2, (3, 100))[..., 0, :]  # what each begins with
            for take in pieces:
                first = sorted(map(tuple, take[0].tolist()))
                assert all(sorted(map(tuple, order.tolist())) == first for order in take)
                assert len({tuple(order.flatten().tolist()) for order in take}) == 4
                assert torch.equal(take[0], take[1].flip(0))
                assert torch.equal(take[2], take[3].flip(0))
            one, other = pieces
            assert torch.equal(one[..., 0], other[..., 0])  # the same tracks in the same orders
            assert (one[..., 1] - other[..., 1]).abs().max() <= 12  # moved by half a second at most
            seen.add(len(set(one[0, :, 0].tolist())))
            if len(set(one[0, :, 0].tolist())) == 1:
                assert len(set(one[0, :, 1].tolist())) == 3  # three places of one song
    assert {1, 3} <= seen


def test_telling_orders_is_a_softmax_over_the_orders_of_the_other_take():
    a, b = torch.eye(2)
    # One group of two orders: the first take's projections, then the second's.
    loss, accuracy = nano.order_contrastive_loss(torch.stack([a, b, 2 * a, 3 * b]), 2)
    assert loss.item() == pytest.approx(-np.log(np.exp(10) / (np.exp(10) + 1)), abs=1e-6)
    assert accuracy == 1
    loss, accuracy = nano.order_contrastive_loss(torch.stack([a, b, b, a]), 2)
    assert loss.item() == pytest.approx(10, rel=1e-4)
    assert accuracy == 0


def test_the_quantiser_codes_what_the_codebooks_before_it_left(rng):
    mel = rng.normal(-20, 15, (2000, 128)).astype(np.float16)
    pitch = rng.normal(-20, 15, (500, 72)).astype(np.float16)
    quantiser = mel_tokens.Quantiser.fit([(mel, pitch)], 1, per_track=500, rounds=3)
    tokens = quantiser(mel, pitch)
    assert (tokens.shape, tokens.dtype) == ((500, 9), np.uint8)
    view = mel_tokens.views(mel, pitch)["mel"]
    x = (view - quantiser.tensors["mel.mean"]) @ quantiser.tensors["mel.basis"]
    left = [x.square().mean().item()]
    for book in range(3):
        x = x - quantiser.tensors[f"mel.{book}"][tokens[:, book].astype(int)]
        left.append(x.square().mean().item())
    assert left == sorted(left, reverse=True)


def test_tonality_is_the_same_in_every_key(rng):
    pitch = rng.normal(-20, 15, (200, 72)).astype(np.float32)
    higher = np.roll(pitch.reshape(200, 6, 12), 3, 2).reshape(200, 72)
    mel = np.zeros((800, 128), np.float32)
    one, other = (mel_tokens.views(mel, p) for p in (pitch, higher))
    for name in ("tonality", "degrees"):
        torch.testing.assert_close(one[name], other[name])
    assert (one["chroma"] - other["chroma"]).abs().max() > 0.1


def test_degrees_tell_major_from_minor():
    """A bass on C below C E G, or below C Es G, some octaves up."""
    found = []
    for third in (4, 3):
        pitch = np.full((200, 72), -60, np.float32)
        pitch[:, [0, 36, 36 + third, 43]] = 0
        view = mel_tokens.views(np.zeros((800, 128), np.float32), pitch)["degrees"][100]
        found.append(set(view.argsort(descending=True)[:3].tolist()))
    assert found == [{0, 4, 7}, {0, 3, 7}]


def test_wrong_flags_are_one_line():
    done = run(SCRIPT, "--out=x", "--seconds=90", cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("pretrain_nano.py: error: --batch_seconds 60 is shorter than")
    assert done.stderr.count("\n") == 1
    done = run(SCRIPT, "--out=x", "--order_every=1", cwd=ROOT)
    assert done.returncode == 2
    assert "--order_every must be at least 2" in done.stderr


def test_tasks_tracks_are_the_share_of_crops_that_was_asked_for(rng, monkeypatch):
    class Tracks:
        """Four composed songs, of which one is for validation, and one track of a task."""

        lengths = (100,) * 5

        def mel(self, track, first, last):
            return np.full((4 * (last - first), 128), track, np.float16)

    monkeypatch.setattr(nano_orders, "LEVEL_DB", 0)
    music = nano_music.Music(Tracks(), train=[1, 2, 3, 4], val=[0], folder=None, composed=4)
    tokens = [np.full((100, 9), i, np.uint8) for i in range(5)]
    for share in (0.1, 0.7):
        crops = nano_music.Crops(music, tokens, [2], 400, 0.6, seed=5, tasks_share=share)
        songs = torch.cat([crops[i]["tokens"][:, 0, 0] for i in range(20)])  # 4,000
        assert (songs == 4).float().mean().item() == pytest.approx(share, abs=0.03)
        assert set(songs.tolist()) == {1, 2, 3, 4}
        chances = music.chances(share)
        heard = [
            nano_orders.draw(Tracks(), music.train, 3, rng, chances)["mel"] for _ in range(200)
        ]
        # Half of the groups are of one song, the others of three different ones.
        one = [g for g in torch.cat(heard).unflatten(0, (-1, 8)) if (g == g[0, 0, 0]).all()]
        of_task = np.mean([g[0, 0, 0].item() == 4 for g in one])
        assert of_task == pytest.approx(share, abs=0.09)
    music.train.pop()
    assert music.chances(0.25) is None  # composed songs alone


def test_a_folder_of_music_is_learnt_from_and_its_subfolders_are_albums(folder, tmp_path):
    make_task(tmp_path / "a", seconds=3.2, n=(4, 2, 2))
    music_dir = tmp_path / "music"
    (music_dir / "one").mkdir(parents=True)
    (music_dir / "two").mkdir()
    files = sorted((tmp_path / "a").rglob("*.wav"))
    for i, file in enumerate(files):
        file.rename(music_dir / ("one" if i < 5 else "two") / file.name)
    (music_dir / "two" / "broken.wav").write_bytes(b"RIFF")
    tones = load_task(str(folder / "tones"), tmp_path, cache_dir=tmp_path)
    heard = music_dir / "one" / "heard.wav"  # a test track by another name
    heard.write_bytes(Path(tones.splits["test"]["path"][0]).read_bytes())
    music = nano_music.gather(
        folder / "corpus",
        6,
        4,
        [str(folder / "tones")],
        data_dir=tmp_path,
        cache_dir=folder / "demo",
        audio_dir=music_dir,
        workers=2,
        progress=False,
    )
    assert music.of_folder == 4 + 3
    assert len(music.tracks) == 7 + len(files) - 1  # one in 50, here one, is kept aside
    assert sum(music.facts["audio_dir"].values()) == len(files) - 1
    assert set(music.facts["audio_dir"]) == {"one", "two"}
    assert [Path(r["path"]).name for r in music.facts["refused"]] == ["heard.wav"]
    assert [Path(s["path"]).name for s in music.facts["skipped"]] == ["broken.wav"]
    known = {
        content_hash(p): p.parent.name for p in music_dir.rglob("*.wav") if p.name != "broken.wav"
    }
    albums = [known[k] for k in music.tracks.content_hashes[7:]]
    numbers = music.albums
    assert len(set(numbers[:7])) == 7
    assert {(a, n) for a, n in zip(albums, numbers[7:], strict=True)} == {
        (a, numbers[7 + albums.index(a)]) for a in albums
    }
    assert not set(numbers[:7]) & set(numbers[7:])


def test_partners_are_of_one_album_in_the_share_that_was_asked_for():
    class Tracks:
        """Two composed songs, a task's track, and albums of three tracks and of one."""

        lengths = (100,) * 7

        def mel(self, track, first, last):
            return np.full((4 * (last - first), 128), track, np.float16)

    music = nano_music.Music(
        Tracks(),
        train=list(range(7)),
        val=[],
        folder=None,
        composed=2,
        of_folder=3,
        albums=[0, 1, 2, 3, 3, 3, 6],
    )
    tokens = [np.full((100, 9), i, np.uint8) for i in range(7)]
    for share in (0, 0.6):
        crops = nano_music.Crops(
            music,
            tokens,
            [2],
            16,
            0.6,
            seed=5,
            pairs_from=0,
            tasks_share=0.2,
            audio_share=0.5,
            album_share=share,
        )
        batches = [crops[i] for i in range(600)]
        songs = torch.stack([b["tokens"][:, 0, 0] for b in batches]).long()
        first, second = songs[:, :4].flatten(), songs[:, 4:].flatten()
        assert all(
            torch.equal(b["albums"], torch.tensor(music.albums)[s])
            for b, s in zip(batches, songs, strict=True)
        )
        assert (first >= 3).float().mean().item() == pytest.approx(0.5, abs=0.05)
        in_album = (first >= 3) & (first <= 5)
        assert torch.equal(first[~in_album], second[~in_album])
        assert set(second[in_album].tolist()) == {3, 4, 5}
        other = (first != second)[in_album].float().mean().item()
        assert other == pytest.approx(share, abs=0.05)


def test_crops_of_the_same_album_arent_told_apart():
    a, b = torch.eye(2)
    projections = torch.stack([a, 2 * a, b, 3 * a, a, 2 * b])
    # 0 and 3, 1 and 4, 2 and 5 are partners; 0, 1, 3 and 4 are of one album. Each of these has its
    # partner at 10 and two others at 0 to tell it from; 2 and 5 have four others.
    e = np.exp(-10)
    expected = (4 * np.log(1 + 2 * e) + 2 * np.log(1 + 4 * e)) / 6
    loss = nano.nt_xent_loss(projections, torch.tensor([7, 7, 8, 7, 7, 8]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert nano.nt_xent_loss(projections) > 0.5  # two more at 10
    assert nano.nt_xent_loss(projections, torch.tensor([7, 7, 7, 7, 7, 7])).item() == 0


def test_a_model_begins_with_the_weights_of_another(tmp_path):
    first, other = nano.build_model(1), nano.build_model(2)
    (tmp_path / "first").mkdir()
    nano.write_model(first, tmp_path / "first")
    heads = other.head.weight.clone()
    digest = nano.take_weights(other, tmp_path / "first")
    assert len(digest) == 64
    taken, own = other.state_dict(), first.state_dict()
    same = {k for k in own if torch.equal(taken[k], own[k].half().float())}  # as stored
    assert {k for k in own if k.startswith("conformer.layers") and own[k].ndim > 1} <= same
    assert torch.equal(other.head.weight, heads)
    (tmp_path / "second").mkdir()
    nano.write_model(other, tmp_path / "second")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        nano.take_weights(other, tmp_path)
    save_file({"model.head": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds another kind of model"):
        nano.take_weights(other, tmp_path)
