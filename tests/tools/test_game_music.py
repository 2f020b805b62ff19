"""tools/muq_nano/game_music.py: packages of a mirror made here, good and broken ones."""

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run, tone

from tune.audio.decode import read_audio

SCRIPT = ROOT / "tools" / "muq_nano" / "game_music.py"


def audio(seconds, hz=220) -> bytes:
    """An Ogg Vorbis file."""
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, hz, seed=1), 24_000, format="OGG", subtype="VORBIS")
    return file.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: an ar of a version, a control and a data archive, each on even bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/games/link.ogg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    out = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", data.getvalue()),
    ):
        header = f"{name:16s}{0:<12d}{0:<6d}{0:<6d}{'100644':8s}{len(content):<10d}`\n"
        out += header.encode() + content + b"\n" * (len(content) % 2)
    return out


@pytest.fixture
def mirror(tmp_path):
    """A mirror of four packages, two of them broken, its list, and the paths it was asked for."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("music/../../../escaped.ogg", audio(4, 330))
        archive.writestr("music/notes.txt", "no music")
    packages = {
        "good-data": deb(
            {
                "./usr/share/doc/good-data/copyright": b"License: CC0-1.0\n",
                "./usr/share/games/theme.ogg": audio(3),
                "./usr/share/games/beep.ogg": audio(0.5),
                "./usr/share/games/torn.ogg": b"OggS",
                "./usr/share/games/data.pk3": inner.getvalue(),
            }
        ),
        "other-data": deb({"./usr/share/games/../../../../theme.ogg": audio(2.5, 500)}),
        "torn-data": b"!<arch>\n" + b"x" * 300,
        "wrong-data": deb({"./a.ogg": audio(3)}),
    }
    root, lines = tmp_path / "mirror", []
    (root / "pool").mkdir(parents=True)
    for name, content in packages.items():
        (root / "pool" / f"{name}.deb").write_bytes(content)
        digest = hashlib.sha256(b"" if name == "wrong-data" else content).hexdigest()
        lines.append(f"{name}\tpool/{name}.deb\t{len(content)}\t{digest}\n")
    listed = tmp_path / "list.tsv"
    listed.write_text("".join(lines))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = [
            "--out",
            tmp_path / "music",
            "--list",
            listed,
            "--min_seconds=2",
            "--mirror",
            f"http://127.0.0.1:{server.server_address[1]}",
        ]
        yield flags, asked
        server.shutdown()


def test_music_is_kept_and_what_is_broken_is_reported(mirror, tmp_path):
    flags, asked = mirror
    done = run(SCRIPT, *flags, cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any("torn.ogg left out: " in line for line in lines)
    assert any("torn-data left out" in line and "holds no data archive" in line for line in lines)
    assert any(
        "wrong-data left out" in line and "another file than the list" in line for line in lines
    )
    assert lines[-1].startswith("error: 2 of 4 packages not downloaded (torn-data")
    assert "Traceback" not in done.stderr
    assert "3 tracks of 2 packages" in done.stdout
    music = tmp_path / "music"
    assert sorted(str(p.relative_to(music)) for p in music.rglob("*") if p.is_file()) == [
        "good-data/001-theme.ogg",
        "good-data/002-escaped.ogg",
        "good-data/copyright",
        "good-data/source.json",
        "other-data/001-theme.ogg",
        "other-data/source.json",
    ]
    assert not list(tmp_path.rglob("escaped.ogg"))
    np.testing.assert_allclose(
        len(read_audio(music / "good-data" / "001-theme.ogg", 24_000)), 72_000
    )
    source = json.loads((music / "good-data" / "source.json").read_text())
    assert [t["place"] for t in source["tracks"]] == [
        "./usr/share/games/theme.ogg",
        "./usr/share/games/data.pk3!music/../../../escaped.ogg",
    ]
    assert source["tracks"][0]["seconds"] == 3

    asked.clear()  # what is there isn't fetched again
    done = run(SCRIPT, *flags, "--packages", "good-data", "other-data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not asked


def test_strict_ends_at_the_first_and_an_unknown_package_is_named(mirror, tmp_path):
    flags, _ = mirror
    done = run(SCRIPT, *flags, "--strict", "--packages", "wrong-data", "good-data", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: wrong-data: http://127")
    done = run(SCRIPT, *flags, "--packages", "nosuch", cwd=tmp_path)
    assert done.returncode == 2
    assert "--packages nosuch is not in" in done.stderr


def test_the_list_is_of_free_packages_without_those_of_gamemusic():
    rows = [
        line.split("\t")
        for line in (ROOT / "tools" / "muq_nano" / "game_music.tsv").read_text().splitlines()
    ]
    assert len(rows) > 50
    names = [row[0] for row in rows]
    assert names == sorted(set(names))
    assert all(row[1].startswith("pool/main/") and len(row[3]) == 64 for row in rows)
    for game in (
        "supertux",
        "supertuxkart",
        "ufoai",
        "warzone2100",
        "wesnoth",
        "widelands",
        "flare",
    ):
        assert not [n for n in names if n.startswith(game)]
