#!/usr/bin/env bash
# All that a machine with a GPU is needed for, in under ten minutes and without a network: builds in place for
# its GPU, then tests, compute-sanitizer, benchmarks and a profile, all with the torch of $PYTHON (python3).
# Leaves a log of every part in build/gpu and the figures in benchmarks/results. A part that fails does not
# keep the others from running. --rehearse runs what needs no GPU, on small problems on the CPU.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
python=${PYTHON:-python3}
[[ ${1:-} == --rehearse ]] && logs=build/rehearsal || logs=build/gpu
deadline=$((SECONDS + ${SFRS_GPU_SECONDS:-570}))
summary=() failed=0
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p "$logs" && rm -f "$logs"/*.*

# part NAME SECONDS COMMAND...: the command's output goes to the log, its last line and its fate to the summary.
part() {
  local name=$1 most=$2 begin=$SECONDS code fate left=$((deadline - SECONDS))
  shift 2
  if ((left < 5)); then
    code=124 fate="no time left"
  else
    timeout --kill-after=5 "$((most < left ? most : left))" "$@" > "$logs/$name.log" 2>&1 < /dev/null
    code=$?
    case $code in
      0) fate=$(tail -n 1 "$logs/$name.log") ;;
      124 | 137) fate="stopped after $((SECONDS - begin)) s: $(tail -n 1 "$logs/$name.log")" ;;
      *) fate="exit $code: $(tail -n 1 "$logs/$name.log")" && tail -n 30 "$logs/$name.log" ;;
    esac
  fi
  ((code == 0)) || failed=1
  summary+=("$(printf '%-4s %-11s %4d s  %s' "$( ((code == 0)) && echo ok || echo FAIL)" "$name" $((SECONDS - begin)) "${fate:0:160}")")
  echo "${summary[-1]}"
  return "$code"
}

skip() {
  summary+=("$(printf '%-4s %-11s         %s' - "$1" "$2")")
  echo "${summary[-1]}"
}

finish() {
  echo && printf '%s\n' "summary (logs in $logs):" "${summary[@]}" | tee "$logs/summary.txt"
  exit "$failed"
}

# The next three run in a shell of their own, so that `timeout` can end them.
# shellcheck disable=SC2317
build() {
  local folder=$logs/cmake
  cmake -S . -B "$folder" -G Ninja -DPYTHON="$(command -v "$python")" -DOUTPUT_DIR="$PWD/sfrs_ext" \
    -DSFRS_CUDA_OPTIONS=-lineinfo && cmake --build "$folder"
}

# shellcheck disable=SC2317
sanitize() {
  # Every tensor an allocation of its own, so that no access beyond its end hides in torch's cache.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$python" tests/cuda/calls.py
}

# shellcheck disable=SC2317
profile() {
  local sections=()
  for name in SpeedOfLight LaunchStats Occupancy ComputeWorkloadAnalysis MemoryWorkloadAnalysis SchedulerStats; do
    sections+=(--section "$name")
  done
  ncu --clock-control none "${sections[@]}" --kernel-name-base demangled --kernel-name regex:sfrs \
    --csv --page raw "$python" tests/cuda/calls.py --large > "$logs/profile.csv" || return
  "$python" tests/cuda/limits.py "$logs/profile.csv" "$results-profile.csv"
}

rehearse() {
  part syntax 60 bash -n "$0"
  if command -v shellcheck > /dev/null; then part shellcheck 60 shellcheck "$0"; else skip shellcheck "not here"; fi
  part facts 60 "$python" -m sfrs_ext
  part tests 120 "$python" -m pytest --collect-only -m cuda tests/ops
  part calls 120 "$python" tests/cuda/calls.py --device cpu
  finish
}

on_gpu() {
  local found
  if ! found=$("$python" -c '
import torch
assert torch.version.cuda, f"torch {torch.__version__} was built without CUDA"
torch.zeros(1, device="cuda")
print(*torch.cuda.get_device_capability(), torch.cuda.get_device_name(), sep=";")' 2>&1); then
    echo "no CUDA device: $(tail -n 1 <<< "$found")"
    exit 1
  fi
  IFS=';' read -r major minor gpu <<< "$(tail -n 1 <<< "$found")"
  results=benchmarks/results/$(tr -cs 'a-z0-9' '-' <<< "${gpu,,}" | sed 's/^-*//; s/-*$//')
  export SFRS_CUDA=ON SFRS_CUDA_ARCHS=$major$minor python logs results
  export -f build sanitize profile
  echo "$gpu, compute capability $major.$minor"

  if ! part build 240 bash -c build; then
    skip others "not run: there is nothing to run"
    finish
  fi
  part facts 60 "$python" -m sfrs_ext
  part tests 150 "$python" -m pytest -m cuda --maxfail=20 tests/ops
  for tool in memcheck racecheck synccheck; do
    if command -v compute-sanitizer > /dev/null; then part $tool 60 bash -c "sanitize $tool"; else skip $tool "no compute-sanitizer"; fi
  done
  local left=$((deadline - SECONDS - 70))
  part benchmarks $((left + 30)) "$python" -m benchmarks.gpu --out "$results" --seconds $((left > 20 ? left : 20))
  if command -v ncu > /dev/null; then part profile 90 bash -c profile; else skip profile "no ncu"; fi
  finish
}

if [[ ${1:-} == --rehearse ]]; then rehearse; else on_gpu; fi
