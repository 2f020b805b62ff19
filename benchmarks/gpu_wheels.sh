#!/usr/bin/env bash
# Gather the wheels that a machine image with PyTorch lacks for TUNE, small ones first:
#
#     bash benchmarks/gpu_wheels.sh FOLDER [PYTHON_VERSION]      (default: 3.12)
#
# For Linux on x86-64. W&B is left out: gpu.sh reports to nobody; pyarrow (49 MB) is expected in the
# image. Its last line is the folder's size.
set -euo pipefail
folder=$1 version=${2:-3.12}
python=${PYTHON:-python3}
platforms=(--platform any)
for n in 28 27 26 24 17 12 5; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)

"$python" -m pip wheel -q --no-deps -w "$folder" "muq>=0.1,<0.2"  # source only
for name in nnaudio easydict x_clip beartype ftfy wcwidth decorator audioread platformdirs pooch \
    "librosa>=0.11,<0.12" pycparser cffi soundfile soxr mir_eval evaluate dill multiprocess datasets \
    "av>=18.1,<19"; do
    "$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
        --python-version "$version" "${platforms[@]}" -d "$folder" "$name"
done
du -sh "$folder"
