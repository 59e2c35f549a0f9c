# What nsys.sh and ncu.sh have in common; they source it first. Sets $script, $out and $PYTHON, and goes to the root.
unset CDPATH           # cd would print, or go elsewhere
unset TRITON_INTERPRET # for machines without a GPU

script="profiling/$(basename "${BASH_SOURCE[1]}")"
out="${OUT:-}"
[[ -z "$out" || "$out" == /* ]] || out="$PWD/$out" # as seen from where the script was called
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${out:-profiling/out}"
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

fail() { # MESSAGE [STATUS]: one line on stderr
  echo "$script: error: $1" >&2
  exit "${2:-2}"
}

print_help() { # the comment that the script begins with
  sed -n '2,/^[^#]/{/^[^#]/d;s/^# \{0,1\}//;p;}' "$script"
}

needs_torch() {
  "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null ||
    fail "needs a Python with stormfast's packages, but $PYTHON is none that has torch; run make, or name another: PYTHON=..."
}

begin_report() { # TOOL NAME WARM_STEPS_ARGUMENT...: makes $out, and sets $report, without its ending
  local label
  label="$("$PYTHON" -m profiling.warm_steps "${@:3}" --name-for "$1")" || exit "$?"
  mkdir -p "$out" || fail "OUT must be a directory that can be written, got $out"
  report="$out/$2-$label"
}
