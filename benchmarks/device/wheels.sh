#!/usr/bin/env bash
# What a bare machine with torch, NumPy, SciPy and scikit-learn lacks, into .whl (Python 3.12, Linux).
set -euo pipefail
cd "$(dirname "$0")/../.."
platforms=(--platform manylinux2014_x86_64)
for glibc in 17 24 27 28; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
rm -rf .whl
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp "${platforms[@]}" -d .whl \
  anndata==0.12.19 array-api-compat==1.16.0 cyclopts==5.5.2 docstring_parser==0.18.0 docutils==0.23 \
  donfig==0.8.1.post1 google-crc32c==1.9.0 legacy-api-wrap==1.5 mudata==0.3.10 natsort==8.4.0 \
  numcodecs==0.16.6 pandas==2.3.3 pytz==2026.6 rich-rst==2.2.0 scverse-misc==0.0.3 \
  session-info2==0.4.1 tzdata==2026.6 zarr==3.1.6
