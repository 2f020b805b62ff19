"""The store as a `datasets.Dataset`: one row a token and layer. See `tune.store.Collection`."""

from collections.abc import Collection as Container
from collections.abc import Iterator
from functools import partial

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value


def to_dataset(collection, contents: Container[str] | None = None, streaming: bool = False):
    """Make what `Collection.to_dataset` returns."""
    size = next((row.tokens.shape[2] for *_, row in collection.rows()), None)
    if size is None:
        raise ValueError(f"the collection {collection.folder} holds no rows")
    features = Features(
        {
            "content": Value("string"),
            "cut": Value("string"),
            "segment": Value("int32"),
            "start_s": Value("float64"),
            "end_s": Value("float64"),
            "layer": Value("int32"),
            "embedding": List(Value("float32"), length=size),
            "silent": Value("bool"),
        }
    )
    generate = partial(records, collection, None if contents is None else frozenset(contents))
    if streaming:
        return IterableDataset.from_generator(generate, features=features)
    # Not Dataset.from_generator: it would answer from its cache after the store has grown.
    columns: dict[str, list] = {name: [] for name in features}
    for record in generate():
        for name, value in record.items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=features)


def records(collection, contents: frozenset | None) -> Iterator[dict]:
    """One dict a token and layer, in order of content, cut and time."""
    rate = collection.key["sample_rate"]
    for content, cut, row in collection.rows():
        if contents is not None and content not in contents:
            continue
        segments = np.repeat(np.arange(len(row.counts)), row.counts)
        for i, (start_s, end_s) in enumerate(row.times(rate, collection.window_s)):
            for k, layer in enumerate(collection.layers):
                yield {
                    "content": content,
                    "cut": cut,
                    "segment": int(segments[i]),
                    "start_s": float(start_s),
                    "end_s": float(end_s),
                    "layer": layer,
                    "embedding": row.tokens[i, k],
                    "silent": row.silent,
                }
