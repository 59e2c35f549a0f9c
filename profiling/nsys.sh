#!/usr/bin/env bash
# When does the host launch what, when does the GPU run it, and where does either wait? Nsight Systems around warm steps.
#
#     profiling/nsys.sh --preset storm                     10 steps; the settings are those of `python -m profiling.warm_steps --help`
#     OUT=/tmp/reports profiling/nsys.sh --preset fast --compile off --steps 20
#
# Needs a CUDA GPU and nsys 2023.1 or newer (NSYS=/path/to/nsys, where it is not on PATH). PYTHON=... names the interpreter; default is
# .venv/bin/python, else python3. Writes OUT/nsys-PRESET-DATE-COMMIT.nsys-rep for its GUI, and prints, of the steps alone:
#     nvtx_gpu_proj_sum   GPU time of each phase (Total Proj Time) beside the host's (Total Range Time): the phases to work on
#     nvtx_sum            the host's time of each phase: mean, median and spread
#     cuda_gpu_kern_sum   the kernels by GPU time
# In the GUI the row "stormfast" has the phases. A gap on the GPU's row under a phase: the host was late; under act: it waits, as it
# should, for the action. Kernels of graphs are shown one by one (--cuda-graph-trace=node), which costs some time of its own:
# for speed, believe `stormfast profile`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/nsight.sh"

for argument in "$@"; do
  case "$argument" in
    -h | --help)
      print_help
      exit 0
      ;;
  esac
done

nsys="${NSYS:-nsys}"
command -v "$nsys" >/dev/null ||
  fail "needs Nsight Systems, but there is no $nsys; it comes with the CUDA toolkit (or NSYS=/path/to/nsys). python -m profiling.trace needs none"
needs_torch

arguments=(--device cuda --steps 10 "$@")
begin_report nsys nsys "${arguments[@]}"

"$nsys" profile --trace=cuda,nvtx,osrt --sample=none --cpuctxsw=none \
  --capture-range=cudaProfilerApi --capture-range-end=stop --cuda-graph-trace=node \
  --output="$report" "$PYTHON" -m profiling.warm_steps "${arguments[@]}" ||
  fail "$nsys profile ended with status $?, and says why above" 1
[[ -s "$report.nsys-rep" ]] || fail "$nsys wrote no $report.nsys-rep; it must be 2023.1 or newer, and is: $("$nsys" --version)" 1

"$nsys" stats --report nvtx_gpu_proj_sum --report nvtx_sum --report cuda_gpu_kern_sum --force-export=true "$report.nsys-rep" ||
  fail "$nsys stats ended with status $?; the report is there: $report.nsys-rep" 1
echo "$report.nsys-rep"
