#!/usr/bin/env bash
# Training on one GPU, from a checkout alone, offline, in under 9 minutes: gpu.json and gpu.md in $OUT.
# Needs torch, transformers and peft.  To try it on a CPU: bash benchmarks/trainer/gpu.sh --tiny --steps 1
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="trainer_image${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
out=${OUT:-$(mktemp -d)} python=${PYTHON:-python3}
"$python" benchmarks/trainer/bench_gpu.py --minutes 6 --out "$out/gpu.json" "$@" | tee "$out/gpu.md" || failed=1
loop=(--size article-002 --length 1024 --rows 16 --rounds 3 --steps 5)
[[ " $* " != *" --tiny "* ]] || loop=(--size tiny --length 64 --rounds 2)
timeout 120 "$python" benchmarks/trainer/bench_loop.py "${loop[@]}" | tee -a "$out/gpu.md" || echo "bench_loop.py was cut off"
echo "in $out"
exit "${failed:-0}"
