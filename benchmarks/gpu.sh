#!/usr/bin/env bash
# Everything that can be asked of a GPU in eight minutes:
#
#     bash benchmarks/gpu.sh [OUT.json] [flags of gpu.py]
#
# Needs a PyTorch for CUDA. Packages that are missing are installed from the wheels in the folder
# $WHEELS (benchmarks/gpu_wheels.sh gathers them) into a folder that is removed at the end; nothing
# is downloaded.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
site=$folder/site-packages  # dill pickles the modules of packages that lie elsewhere

if [ -n "${WHEELS:-}" ]; then
    missing=$("$python" - "$WHEELS" <<'LIST'
import importlib.metadata, pathlib, sys

for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        print(wheel)
LIST
)
    # shellcheck disable=SC2086 - one wheel a word
    [ -z "$missing" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" $missing
fi
# The repository comes last: its profile.py would hide the standard library's.
export PYTHONPATH="$site:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then set -- --out "$@"; fi
"$python" "$root/benchmarks/gpu.py" "$@"
