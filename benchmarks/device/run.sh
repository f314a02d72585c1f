#!/usr/bin/env bash
# On a bare machine with a CUDA card, Python 3.12, torch and no package index, in at most 8 minutes:
# every model on the card, the likelihood against float64, cells per second. First, where there is an
# index: benchmarks/device/wheels.sh. Logs and rows go to $OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-benchmarks/device}
export PYTHONPATH="$PWD/src:$PWD:/tmp/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
  --target /tmp/site .whl/*.whl
# the hook that checks types would keep torch's compiler from reading the likelihood
python3 -m pytest -n 7 -q -rfE -W default -p no:cacheprovider \
  -o addopts="--import-mode=importlib" -k card tests/conformance/test_devices.py tests/losses \
  2>&1 | tee "$out/tests.log" || true
OMP_NUM_THREADS=16 python3 benchmarks/device/rates.py "$out/rows.jsonl"
