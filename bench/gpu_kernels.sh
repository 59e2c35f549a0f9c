#!/usr/bin/env bash
# Everything that is to be known of the kernels on this machine's CUDA GPU, unattended, in some minutes:
# tests them there, times them, writes bench/results/DEVICE/kernels-DATE-COMMIT.json, and prints its table.
#
#     bench/gpu_kernels.sh              PYTHON=python3 bench/gpu_kernels.sh       (default: .venv/bin/python, else python3)
#
# Where the tree came without its git history, STORMFAST_COMMIT=... says the commit. Arguments go to the benches, as -k attention.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
unset TRITON_INTERPRET STORMFAST_KERNELS # the interpreter is for machines without a GPU, and the benches choose for themselves

"$PYTHON" - <<'EOF'
import sys
try:
    import pytest_benchmark, torch
except ImportError as error:
    sys.exit(f"bench/gpu_kernels.sh needs torch and pytest-benchmark in {sys.executable}: {error}; name another interpreter: PYTHON=...")
if not torch.cuda.is_available():
    sys.exit(f"bench/gpu_kernels.sh needs a CUDA GPU, but torch {torch.__version__} finds none; on a CPU run 'make bench-kernels'")
EOF

read -r device commit < <("$PYTHON" bench/devices.py cuda)
result="bench/results/$device/kernels-$(date +%F)-$commit.json"
mkdir -p "$(dirname "$result")"

"$PYTHON" -m pytest tests/kernels -m gpu
"$PYTHON" -m pytest bench/kernels --device cuda --benchmark-json="$result" "$@"
echo "$result"
echo
"$PYTHON" bench/kernels/table.py "$result"
