#!/usr/bin/env bash
# Everything that is to be known of stormfast on this machine's CUDA GPU, unattended, within ten minutes; and whole training runs.
#
#     bench/gpu_suite.sh                    bench/gpu_suite.sh train --game Pong --minutes 9              bench/gpu_suite.sh --help
#
# The interpreter is $PYTHON, else .venv/bin/python, else python3.
set -euo pipefail
unset CDPATH # with it, cd prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
command -v -- "$PYTHON" >/dev/null || { echo "gpu_suite: there is no $PYTHON; name another interpreter: PYTHON=..." >&2; exit 2; }
exec "$PYTHON" "$root/bench/gpu_suite.py" "$@"
