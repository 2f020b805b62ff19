"""python -m tune.embeddings similar: what it imports."""

from conftest import run


def test_a_parquet_file_is_searched_without_torch(tmp_path):
    code = "import sys, tune.embeddings.similar; print('torch' in sys.modules)"
    assert run("-c", code, cwd=tmp_path).stdout.strip() == "False"
