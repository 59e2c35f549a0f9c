#!/usr/bin/env bash
# Tests, benches, profiles and trains stormfast on this machine's CUDA GPU, unattended. All options: bench/gpu_suite.sh --help
#
#     bench/gpu_suite.sh                          # ten minutes; exit status 3: call it again, it goes on with what is missing
#     bench/gpu_suite.sh --wheels FOLDER          # without a network: packages from a folder of wheels, by default .whl/
#
# The interpreter is $PYTHON, else .venv/bin/python, else python3; torch, triton and numpy must be installed in it.
# The folder of wheels is what `python -m bench.pack_wheels` makes. Its packages go to runs/suite/, where only the suite sees
# them. Where it has a script atari-env.sh, that is sourced with the folder of the installed packages as its argument.
set -euo pipefail
unset CDPATH # with it, cd prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { echo "gpu_suite: $1" >&2; exit 2; }

wheels=$root/.whl options=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=${2:?gpu_suite: --wheels needs a folder}; [ -d "$wheels" ] || fail "--wheels must be a folder, got $wheels"; shift 2 ;;
    *) options+=("$1"); shift ;;
  esac
done

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
command -v -- "$PYTHON" >/dev/null || fail "there is no $PYTHON; name another interpreter: PYTHON=..."

if [ -d "$wheels" ]; then
  key=$( (cd "$wheels" && "$PYTHON" -VV && ls -l) | cksum | cut -d' ' -f1)
  site=$root/runs/suite/site-$key
  if [ ! -d "$site" ]; then # installed aside and renamed, so that what is there is whole
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site.$$" "$wheels"/*.whl \
      || fail "the wheels in $wheels cannot be installed with $PYTHON; pip says why above"
    mv "$site.$$" "$site"
  fi
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
  # shellcheck source=/dev/null
  [ ! -f "$wheels/atari-env.sh" ] || . "$wheels/atari-env.sh" "$site"
fi
export PYTHONPATH=$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH} # this checkout, whatever is installed

missing=$("$PYTHON" -c 'import importlib.util, sys; print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))' \
  torch numpy gymnasium rich safetensors tyro pytest pytest_benchmark)
[ -z "$missing" ] || fail "$PYTHON lacks $missing; install them, or give a folder of wheels: --wheels FOLDER"
exec "$PYTHON" -m bench.gpu_suite ${options[@]+"${options[@]}"}
