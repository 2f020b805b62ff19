"""The stand-in for the hub, through the hub's own client."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WAVE, LIST = bytes(range(256)) * 8, b'{"audio_path": "a.wav"}\n'
FILES = {"genres/rock/a.wav": WAVE, "genres/jazz/b.wav": WAVE[::-1], "GTZAN.train.jsonl": LIST}


@pytest.fixture
def commit(hub):
    """A small data set's commit."""
    return hub.add("m-a-p/GTZAN", "dataset", FILES, license="cc-by-4.0")


def download(**kwargs):
    """Fetch the data set to the cache."""
    return snapshot_download("m-a-p/GTZAN", repo_type="dataset", **kwargs)


def test_a_snapshot_lies_in_the_cache_as_the_hubs_own(hub, commit, tmp_path):
    folder = download()
    assert folder.endswith(f"datasets--m-a-p--GTZAN/snapshots/{commit}")
    for name, data in FILES.items():
        assert (hub.cache / folder / name).read_bytes() == data
    blob = (hub.cache / folder / "genres/rock/a.wav").resolve()
    assert blob.name == hashlib.sha256(WAVE).hexdigest()
    asked = len(hub.asked)
    assert download(revision=commit) == folder
    assert len(hub.asked) == asked  # nothing was asked for again
    local = download(local_dir=tmp_path / "data", allow_patterns=["*.jsonl"])
    assert [p.name for p in (tmp_path / "data").glob("*.*")] == [".cache", "GTZAN.train.jsonl"]
    assert local == str(tmp_path / "data")


def test_trees_paths_and_names_are_listed(hub, commit, monkeypatch):
    monkeypatch.setattr(hub_server, "PAGE", 2)
    api, given = HfApi(), {"repo_type": "dataset"}
    tree = {f.path: f for f in api.list_repo_tree("m-a-p/GTZAN", recursive=True, **given)}
    assert set(tree) == {*FILES, "genres", "genres/rock", "genres/jazz"}
    assert tree["genres/rock/a.wav"].lfs.sha256 == hashlib.sha256(WAVE).hexdigest()
    assert tree["GTZAN.train.jsonl"].lfs is None
    top = [f.path for f in api.list_repo_tree("m-a-p/GTZAN", **given)]
    assert sorted(top) == ["GTZAN.train.jsonl", "genres"]
    (info,) = api.get_paths_info("m-a-p/GTZAN", ["genres/jazz/b.wav", "nothing"], **given)
    assert (info.size, info.path) == (2048, "genres/jazz/b.wav")
    assert [found.id for found in api.list_datasets(search="gtz", author="m-a-p")] == [
        "m-a-p/GTZAN"
    ]
    assert api.dataset_info("m-a-p/GTZAN").card_data.license == "cc-by-4.0"


def test_revisions_are_branches_commits_and_pull_requests(hub):
    main = hub.add("a/b", "model", {"config.json": b"{}"})
    hub.add("a/b", "model", {"config.json": b"[]"}, ref="refs/pr/3", commit="72e21e1" + "0" * 33)
    path = hf_hub_download("a/b", "config.json", revision="refs/pr/3")
    assert Path(path).read_text() == "[]"
    assert hf_hub_download("a/b", "config.json").endswith(f"{main}/config.json")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("a/b", revision="v9")


@pytest.mark.parametrize(
    ("kind", "path", "error"),
    [
        ("gated", "*", GatedRepoError),
        ("no_repo", "*", RepositoryNotFoundError),
        (401, "*", HfHubHTTPError),
        (403, "*/resolve/*", LocalEntryNotFoundError),  # from a HfHubHTTPError
        (404, "*/resolve/*", LocalEntryNotFoundError),
        ("no_file", "*/resolve/*", RemoteEntryNotFoundError),
        (429, "*/resolve/*", LocalEntryNotFoundError),
        (500, "/api/*", LocalEntryNotFoundError),
        ("wrong_size", "*a.wav", OSError),
    ],
)
def test_requests_fail_as_the_hubs_do(hub, commit, kind, path, error):
    hub.fail(kind, path)
    with pytest.raises(error) as raised:
        download()
    cause = raised.value if isinstance(raised.value, HfHubHTTPError) else raised.value.__cause__
    if isinstance(kind, int):
        assert cause.response.status_code == kind
    assert not [p for p in hub.cache.rglob("*.wav") if p.name == "a.wav"]
    hub.heal()
    assert download().endswith(commit)


def test_a_dropped_or_stalled_connection_is_taken_up_again_by_the_client(hub, commit):
    hub.fail("drop", "*a.wav", times=2, after=700)
    hub.fail("stall", "*b.wav", times=1, after=100)
    folder = hub.cache / download()
    assert (folder / "genres/rock/a.wav").read_bytes() == WAVE
    assert (folder / "genres/jazz/b.wav").read_bytes() == WAVE[::-1]


def test_damaged_content_of_the_right_size_is_what_the_client_takes(hub, commit):
    hub.fail("wrong_content", "*a.wav")
    damaged = (hub.cache / download() / "genres/rock/a.wav").read_bytes()
    assert len(damaged) == len(WAVE)
    assert damaged != WAVE


def test_a_full_disk_and_a_dead_hub(hub, commit, full_disk):
    with (
        pytest.warns(UserWarning, match="Not enough free disk space"),
        pytest.raises(OSError) as err,
    ):
        download()
    assert "No space left" in str(err.value)
    hub.stop()
    with pytest.raises(LocalEntryNotFoundError):
        download(revision="other")


def test_a_wrong_token_is_refused(hub, commit):
    with pytest.raises(HfHubHTTPError, match="401"):
        download(token="hf_wrong")
    assert download(token="hf_valid").endswith(commit)


def test_a_program_of_its_own_finds_the_stand_in_by_its_environment(hub, commit):
    code = """
from huggingface_hub import snapshot_download
print(snapshot_download("m-a-p/GTZAN", repo_type="dataset"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub.env, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith(commit), done.stderr
