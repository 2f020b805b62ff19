"""The table of tasks: one row each. Reading it loads nothing heavy.

The settings are MARBLE's: those of its v2 configurations for MuQ (`configs/probe.MuQ.<Task>.yaml`)
and, for NSynth and VocalSet, of v1's base configurations. The head is the same for all: one hidden
layer of 512, ReLU, dropout 0.2. Two things differ from MARBLE's: `mix` has one weight a layer where
MARBLE v2 has a linear layer over all of them (`MLPReduce`), and early stopping waits 20 epochs
everywhere, where v2 waits 10 for tags. `--protocol marble` does these and all else as v2 does: its
table, with the files that its values are from, is `tune.probing.protocols`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tune.tasks.label_kinds import Recipe, label_kind

HEAD = "one hidden layer of 512, ReLU, dropout 0.2"


@dataclass(frozen=True)
class TaskRow:
    """A row of the table of tasks.

    Attributes
    ----------
    kind : a name of `tune.tasks.label_kinds.KINDS`: "classes" (one of several), "keys" (one of the
        24 keys), "numbers" (regression), "tags" (any of several)
    about : one line for --help
    stem : beginning of the jsonl files' names, or what another layout needs to know
    targets : names of the regression targets, in the labels' order
    hub : hub data set that holds the audio, or None
    encoder : encoder that the task brings along
    layer : hidden layer where --layer doesn't say: last, or mix (MARBLE's learned mix of all)
    layout : how its files lie, a name of `tune.tasks.load.LAYOUTS`
    folder : its folder below --data_dir; the hub data set's name where empty
    archives : addresses of archives to fetch and unpack into its folder
    n_classes : how many classes or tags it should have; 0 where that isn't known
    n_rows : how many rows its splits should have, as far as that is known
    known_bad : beginnings of the names of files that are known to be undecodable or empty
    recipe : its own, or None for its kind's
    source, licence : where it is from, and its licence as far as that is known
    """

    kind: str
    about: str
    stem: str
    targets: tuple[str, ...] = ()
    hub: str | None = None
    encoder: str = "muq"
    layer: str = "last"
    layout: str = "marble"
    folder: str = ""
    archives: tuple[str, ...] = ()
    n_classes: int = 0
    n_rows: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    known_bad: tuple[str, ...] = ()
    recipe: Recipe | None = None
    source: str = ""
    licence: str = ""

    @property
    def place(self) -> str:
        """Its folder's name below --data_dir."""
        return self.folder or (self.hub.split("/")[1] if self.hub else "")

    @property
    def training(self) -> Recipe:
        """Its recipe, or its kind's."""
        return self.recipe or label_kind(self.kind).recipe


NSYNTH = "http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-{}.jsonwav.tar.gz"
_NSYNTH = dict(
    layout="nsynth",
    folder="NSynth",
    recipe=Recipe(1e-3, 3, "accuracy"),
    archives=tuple(NSYNTH.format(split) for split in ("train", "valid", "test")),
    n_rows=MappingProxyType({"train": 289205, "val": 12678, "test": 4096}),
    source="https://magenta.tensorflow.org/datasets/nsynth",
    licence="CC BY 4.0",
)
_VOCALSET = dict(
    layout="vocalset",
    folder="VocalSet",
    recipe=Recipe(1e-3, 5, "accuracy"),
    archives=("https://zenodo.org/records/1203819/files/VocalSet11.zip",),
    source="https://zenodo.org/records/1193957",
    licence="CC BY 4.0",
)
_MTG = dict(
    hub="m-a-p/MTG",
    layer="mix",
    source="https://mtg.github.io/mtg-jamendo-dataset (split 0)",
    licence="audio: Creative Commons, each track its own; metadata: CC BY-NC-SA 4.0",
)

TASKS = {
    "emo": TaskRow(
        "numbers",
        "EMO: 744 clips of 45 s, arousal and valence",
        "EMO",
        ("arousal", "valence"),
        hub="m-a-p/EMO",
        source="https://cvml.unige.ch/databases/emoMusic",
        n_rows={"test": 125},
    ),
    "gtzan": TaskRow(
        "classes",
        "GTZAN: 930 clips of 30 s, 10 genres, fault-filtered split",
        "GTZANGenre",
        hub="m-a-p/GTZAN",
        n_classes=10,
        n_rows={"train": 443, "val": 197, "test": 290},
        known_bad=("jazz.00054",),
        source="http://marsyas.info/downloads/datasets.html",
    ),
    "gs": TaskRow(
        "keys",
        "GiantSteps: 24 keys of dance music, clips of 30 s scored by track",
        "GS",
        hub="m-a-p/GS",
        layer="mix",
        n_classes=24,
        source="https://github.com/GiantSteps/giantsteps-key-dataset, giantsteps-mtg-key-dataset",
    ),
    "mtt": TaskRow(
        "tags",
        "MagnaTagATune: clips of 29 s, 50 tags",
        "MTT",
        hub="m-a-p/MTT",
        layer="mix",
        n_classes=50,
        known_bad=(
            "norine_braun-now_and_zen-08-gently-117-146",
            "jacob_heringman-josquin_des_prez_lute_settings-19-gintzler__pater_noster-204-233",
            "american_baroque-dances_and_suites_of_rameau_and_couperin-25-le_petit_rien_xiveme_",
        ),
        source="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
    ),
    "mtg-genre": TaskRow(
        "tags", "MTG-Jamendo: full-length tracks, 87 genres", "MTGGenre", n_classes=87, **_MTG
    ),
    "mtg-instrument": TaskRow(
        "tags",
        "MTG-Jamendo: full-length tracks, 40 instruments",
        "MTGInstrument",
        n_classes=40,
        **_MTG,
    ),
    "mtg-moodtheme": TaskRow(
        "tags",
        "MTG-Jamendo: full-length tracks, 56 moods and themes",
        "MTGMood",
        n_classes=56,
        **_MTG,
    ),
    "mtg-top50": TaskRow(
        "tags",
        "MTG-Jamendo: full-length tracks, the 50 commonest tags",
        "MTGTop50",
        n_classes=50,
        **_MTG,
    ),
    "nsynth-pitch": TaskRow(
        "classes", "NSynth: single notes of 4 s, MIDI pitch", "pitch", **_NSYNTH
    ),
    "nsynth-instrument": TaskRow(
        "classes",
        "NSynth: single notes of 4 s, 11 instrument families",
        "instrument_family_str",
        n_classes=11,
        **_NSYNTH,
    ),
    "vocalset-singer": TaskRow(
        "classes", "VocalSet: 20 singers", "singer", n_classes=20, **_VOCALSET
    ),
    "vocalset-technique": TaskRow(
        "classes",
        "VocalSet: 10 vocal techniques, unseen singers",
        "technique",
        n_classes=10,
        **_VOCALSET,
    ),
    "demo": TaskRow(
        "classes",
        "composed music in 10 styles, nothing to download",
        "demo",
        encoder="muq-nano",
        n_classes=10,
    ),
    "demo-mood": TaskRow(
        "numbers",
        "composed music, arousal and valence",
        "demo-mood",
        ("arousal", "valence"),
        encoder="muq-nano",
    ),
    "demo-form": TaskRow(
        "classes", "composed music, the order of its sections", "demo-form", encoder="muq-nano"
    ),
    "demo-key": TaskRow(
        "keys", "composed music in 24 keys", "demo-key", encoder="muq-nano", n_classes=24
    ),
    "demo-tempo": TaskRow(
        "numbers",
        "composed music, its tempo (log2 of beats a minute)",
        "demo-tempo",
        ("log2_bpm",),
        encoder="muq-nano",
    ),
    "demo-instruments": TaskRow(
        "tags",
        "composed music, its instruments (15 tags)",
        "demo-instruments",
        encoder="muq-nano",
        n_classes=15,
    ),
    "demo-artist": TaskRow(
        "classes",
        "composed music by 8 composers in the same styles",
        "demo-artist",
        encoder="muq-nano",
        n_classes=8,
    ),
}


def default_layer(task: str) -> str:
    """The hidden layer where --layer doesn't say."""
    return "last" if task not in TASKS else TASKS[task].layer


def default_encoder(task: str) -> str:
    """The encoder where --encoder doesn't say."""
    return TASKS[task].encoder if task in TASKS else "muq"


def describe_partial(partial: Mapping[str, Mapping[str, int]]) -> str:
    """What a task lacks, as text.

    Examples
    --------
    >>> describe_partial({"train": {"found": 40, "expected": 443}})
    'train 40 of 443'
    """
    return ", ".join(f"{s} {n['found']:,} of {n['expected']:,}" for s, n in partial.items())
