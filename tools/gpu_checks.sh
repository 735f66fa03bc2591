#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All that a machine with a GPU can show: tests that need one, the test suite on it, and what search
# and synthesis cost. Each result is written as it comes: a run that is cut off keeps what it has.
#
#   tools/gpu_checks.sh OUT [FOLDER for a random Stable Diffusion 1.5, 2 GB]
#
# OUT/gpu.jsonl, OUT/gpu.txt   tests marked gpu: their numbers, and what pytest says
# OUT/suite.txt                README's tests on the GPU
# OUT/cost/results.{json,md}   tools/measure_cost.py: beside its floor, memory, synthesis, host
set -uo pipefail
out=${1:?usage: tools/gpu_checks.sh OUT [FOLDER]}
mkdir -p "$out"
out=$(realpath "$out")
sd15=$(realpath -m "${2:-$out/sd15}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0
export MMGAP_GPU_RESULTS="$out/gpu.jsonl" MMGAP_RANDOM_SD15="$sd15"
python -m pytest -m gpu -v -s tests/gpu 2>&1 | tee "$out/gpu.txt" || failed=1
python tools/measure_cost.py configs/ap_resnet50_waterbirds.py --random "$sd15" \
    --formats bfloat16 --cases floor 'floor, compiled' host 'host, new sources' 'plain loop' full \
    'full, sources seen before' 'full, steps checkpointed' 'stock pipeline' synthesis \
    'synthesis, compiled' --out "$out/cost" 2>&1 | tee "$out/cost.txt" || failed=1
workers=(); python -c 'import xdist' 2>/dev/null && workers=(-n "${WORKERS:-8}")
python -m pytest "${workers[@]}" 2>&1 | tee "$out/suite.txt" || failed=1
exit "$failed"
