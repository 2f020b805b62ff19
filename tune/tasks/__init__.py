"""Tasks: tracks with labels and a split, from folders, lists, archives and the hub.

registry, load      the table of tasks; a task by name or path
label_kinds         everything that depends on the kind of label: loss, metrics, columns
label_readers, label_metrics, tag_ranking, musical_keys       its parts
readers, nsynth_vocalset, hub_dataset                         layouts of data sets
rows, tables, text_files, audio_paths, label_columns          how a table is read
own_task            FILE.py:NAME
splits, path_safety
download, hub_download           data sets that are fetched
inspect_files       what check finds in each file
encode_shard        python -m tune.store encode: a share of the tracks
report, check       python -m tune.tasks list | show NAME | check NAME
"""

from tune.system.lazy import lazy_names

PUBLIC = {"TASKS": "registry", "Task": "load", "TaskError": "rows", "load_task": "load"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
