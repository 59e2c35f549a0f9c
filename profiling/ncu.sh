#!/usr/bin/env bash
# What limits one kernel: memory, instructions, or waiting? Nsight Compute on its launches in a warm step.
#
#     profiling/ncu.sh attention_step_kernel --preset storm
#     profiling/ncu.sh unimix_sample_kernel --count 3 --skip 10 --preset fast
#     profiling/ncu.sh --any 'nvjet|gemm' --preset storm        a regular expression for others' kernels; nsys.sh says how they are called
#
# --count launches (default 5) after --skip (default 0) are looked at; other settings are those of `python -m profiling.warm_steps --help`, with --steps 1.
# Needs a CUDA GPU and ncu (NCU=/path/to/ncu, where it is not on PATH), and the right to read the GPU's counters. PYTHON=... names
# the interpreter; default is .venv/bin/python, else python3. Writes OUT/ncu-KERNEL-PRESET-DATE-COMMIT.ncu-rep for its GUI (OUT:
# default profiling/out), and prints the least, most and mean of each number over the launches. Of those read, in this order:
#     Duration                          with the clocks as they are (--clock-control none) and cold caches
#     Memory and Compute Throughput     percent of what the device can. 80 and more: that is the limit, and the kernel is done, but for
#                                       moving or computing less. Both below 60: it waits, and the next two say for what
#     Achieved Occupancy                far below Theoretical: too few programs, or uneven ones. Theoretical low: registers or shared memory
#     Warp state (in the GUI)           the stall with most cycles; Long Scoreboard is memory's latency: more loads in flight
# What its instructions and registers are needs no GPU: kernel_report.py. How much of the step it is: nsys.sh, trace.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/nsight.sh"

is_count() { [[ "$1" =~ ^[0-9]{1,9}$ ]]; }

kernel='' any=false count=5 skip=0
settings=()
while (($#)); do
  case "$1" in
    -h | --help)
      print_help
      exit 0
      ;;
    --any) any=true ;;
    --count | --skip)
      is_count "${2:-}" || fail "$1 must be a number of launches, got '${2:-}'"
      if [[ "$1" == --count ]]; then count=$((10#$2)); else skip=$((10#$2)); fi # 08 is no octal number
      shift
      ;;
    --*=*) settings+=("$1") ;;
    --*)
      settings+=("$1")
      (($# > 1)) && settings+=("$2") && shift
      ;;
    *)
      [[ -z "$kernel" ]] || fail "takes one kernel, got '$kernel' and '$1'"
      kernel="$1"
      ;;
  esac
  shift
done
((count > 0)) || fail "--count must be at least 1, got $count"

ncu="${NCU:-ncu}"
command -v "$ncu" >/dev/null ||
  fail "needs Nsight Compute, but there is no $ncu; it comes with the CUDA toolkit (or NCU=/path/to/ncu). python -m profiling.kernel_report needs none"

known="$(sed -n 's/^def \([a-z][a-z0-9_]*_kernel\)(.*/\1/p' kernels/stormfast_kernels/*.py | sort)"
[[ -n "$kernel" ]] || fail "needs the name of a kernel, one of $(paste -sd ' ' <<<"$known")"
if "$any"; then
  pattern="regex:$kernel"
else
  grep -qxF -- "$kernel" <<<"$known" || fail "'$kernel' is none of our kernels, $(paste -sd ' ' <<<"$known"); for another's, put --any before it"
  pattern="regex:^$kernel\$"
fi
needs_torch

arguments=(--device cuda --steps 1 "${settings[@]}")
begin_report ncu "ncu-$(tr -c 'A-Za-z0-9_\n' '-' <<<"$kernel")" "${arguments[@]}"

"$ncu" --set full --clock-control none --profile-from-start off --graph-profiling node \
  --kernel-name "$pattern" --launch-skip "$skip" --launch-count "$count" --export "$report" \
  "$PYTHON" -m profiling.warm_steps "${arguments[@]}" ||
  fail "$ncu ended with status $?, and says why above; ERR_NVGPUCTRPERM means that only root may read the counters: NVIDIA's driver option NVreg_RestrictProfilingToAdminUsers=0 lets all" 1
[[ -s "$report.ncu-rep" ]] || fail "$ncu saw no launch of $kernel in the steps after the first $skip; another --preset or a smaller --skip may have one" 1

"$ncu" --import "$report.ncu-rep" --page details --print-summary per-kernel || fail "$ncu --import ended with status $?; the report is there: $report.ncu-rep" 1
echo "$report.ncu-rep"
