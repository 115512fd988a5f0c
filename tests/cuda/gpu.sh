#!/usr/bin/env bash
# What a machine with a GPU is needed for, without a network, in stages that fit a quarter of an hour:
#
#   gpu.sh look   150 s: what is here, the primitives alone, shapes, layouts, repeatability, regions, quick figures
#   gpu.sh full   6 minutes: all tests, compute-sanitizer, benchmarks, a profile of the 16-bit kernels
#   gpu.sh        one after the other
#
# All with the torch of $PYTHON (python3). The library of `make gpu-package` is used if it fits, else built here
# for this GPU. Every part leaves a log in build/gpu, the figures go to benchmarks/results, and after each part
# all of it lies in one archive in $SFRS_GPU_OUT, if that is set. A part that fails does not keep the others from
# running. --rehearse runs what needs no GPU, on small problems on the CPU.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
python=${PYTHON:-python3}
package=${SFRS_GPU_PACKAGE:-build/gpu-package}
stages=("$@")
((${#stages[@]})) || stages=(look full)
[[ ${stages[0]} == --rehearse ]] && logs=build/rehearsal || logs=build/gpu
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p "$logs" && rm -f "$logs"/*.*
summary=() failed=0 stage='' deadline=$((SECONDS + 600))

if [[ -z ${SFRS_COMMIT:-} ]] && ! git rev-parse HEAD > /dev/null 2>&1 && [[ -f $package/about.json ]]; then
  SFRS_COMMIT=$(sed -n 's/.*"commit": "\(.*\)".*/\1/p' "$package/about.json")
  export SFRS_COMMIT
fi

# part NAME SECONDS COMMAND...: the command's output goes to the log, its last line and its fate to the summary.
part() {
  local name=$stage$1 most=$2 begin=$SECONDS code fate left=$((deadline - SECONDS)) log="$logs/$stage$1.log"
  shift 2
  if ((left < 5)); then
    code=124 fate="no time left"
  else
    timeout --kill-after=5 "$((most < left ? most : left))" "$@" > "$log" 2>&1 < /dev/null
    code=$?
    case $code in
      0) fate=$(tail -n 1 "$log") ;;
      124 | 137) fate="stopped after $((SECONDS - begin)) s: $(tail -n 1 "$log")" ;;
      *) fate="exit $code: $(tail -n 1 "$log")" && tail -n 30 "$log" ;;
    esac
  fi
  ((code == 0)) || failed=1
  say "$(printf '%-4s %-15s %4d s  %s' "$( ((code == 0)) && echo ok || echo FAIL)" "$name" $((SECONDS - begin)) "${fate:0:160}")"
  return "$code"
}

skip() {
  say "$(printf '%-4s %-15s         %s' - "$stage$1" "$2")"
}

say() {
  summary+=("$1")
  echo "$1"
  printf '%s\n' "${summary[@]}" > "$logs/summary.txt"
  archive
}

# One file, flat, whole at any time: a machine that is taken away leaves what was done.
archive() {
  [[ -n ${SFRS_GPU_OUT:-} ]] || return 0
  local figures=() file
  for file in "$results"*; do [[ -f $file ]] && figures+=("$file"); done
  tar -czf "$SFRS_GPU_OUT/.partial" --exclude=cmake "$logs" "${figures[@]}" &&
    mv "$SFRS_GPU_OUT/.partial" "$SFRS_GPU_OUT/sfrs-gpu.tar.gz" && cp "$logs/summary.txt" "$SFRS_GPU_OUT/"
}

finish() {
  echo && printf '%s\n' "summary (logs in $logs):" "${summary[@]}"
  exit "$failed"
}

has() { "$python" -c "import $1" > /dev/null 2>&1; }

# These run in a shell of their own, so that `timeout` can end them.
# shellcheck disable=SC2317
here() {
  nvidia-smi
  "$python" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__)'
  for name in nvcc ncu compute-sanitizer cmake ninja; do command -v $name || echo "no $name"; done
  for name in pytest xdist triton numpy; do has $name || echo "no Python package $name"; done
  "$python" -c 'from benchmarks.record import commit; print("commit", commit())'
}

# shellcheck disable=SC2317
library() {
  [[ -d $package ]] && "$python" tests/cuda/package.py use "$package" && return
  cmake -S . -B "$logs/cmake" -G Ninja -DPYTHON="$(command -v "$python")" -DOUTPUT_DIR="$PWD/sfrs_ext" \
    -DSFRS_CUDA_OPTIONS=-lineinfo && cmake --build "$logs/cmake"
}

# shellcheck disable=SC2317
primitives() {
  [[ -x $package/primitives ]] && "$package/primitives" && return
  nvcc -std=c++17 -arch="sm_$SFRS_CUDA_ARCHS" -o "$logs/primitives" csrc/testing/primitives.cu && "$logs/primitives"
}

# Tests in several processes: a process whose CUDA context a test has lost is replaced.
# shellcheck disable=SC2317
tests() {
  local options=(-m cuda --maxfail=40 "$@")
  if has pytest && has xdist; then
    "$python" -m pytest --numprocesses 4 --max-worker-restart 40 "${options[@]}" tests/ops
  elif has pytest; then
    # Files without a test for CUDA end with 5.
    printf '%s\n' tests/ops/test_*.py |
      xargs -P 4 -I{} sh -c '"$@" || test $? = 5' sh "$python" -m pytest "${options[@]}" {}
  else
    echo "no pytest here: every operator is held against the reference, in few shapes"
    "$python" tests/cuda/calls.py --check
  fi
}

# shellcheck disable=SC2317
sanitize() {
  # Every tensor an allocation of its own, so that no access beyond its end hides in torch's cache.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$python" tests/cuda/calls.py "${@:2}"
}

# The kernels of training in bfloat16, one operator after the other: what is done is written.
# shellcheck disable=SC2317
profile() {
  local sections=() name code=0
  for name in SpeedOfLight LaunchStats Occupancy ComputeWorkloadAnalysis MemoryWorkloadAnalysis SchedulerStats; do
    sections+=(--section "$name")
  done
  for name in netvlad region_vlad lists all-pairs; do
    ncu --clock-control none "${sections[@]}" --kernel-name-base demangled --kernel-name regex:sfrs \
      --csv --page raw "$python" tests/cuda/calls.py --large --type bf16 --only "$name" > "$logs/ncu-$name.csv" &&
      "$python" tests/cuda/limits.py "$logs/ncu-$name.csv" "$results-profile-$name.csv" || code=1
  done
  return $code
}

# Benchmarks with nothing but torch and numpy to import.
# shellcheck disable=SC2317
bare() {
  export PYTHONPATH=$PWD/tests/cuda/bare:$PWD
  "$python" -m benchmarks.gpu --list &&
    "$python" -m benchmarks.gpu --device cpu --case netvlad-forward-backward-B1-fp32 \
      --contender sfrs_ext --contender two-GEMM --out "$logs/bare"
}
export -f has here library primitives tests sanitize profile bare

rehearse() {
  results=benchmarks/results/rehearsal deadline=$((SECONDS + 570))
  export python logs results package
  part syntax 60 bash -n "$0"
  if command -v shellcheck > /dev/null; then part shellcheck 60 shellcheck "$0"; else skip shellcheck "not here"; fi
  part facts 60 "$python" -m sfrs_ext
  part tests 120 "$python" -m pytest --collect-only -m cuda tests/ops
  part calls 120 "$python" tests/cuda/calls.py --device cpu --few --check
  part bare 120 bash -c bare
  finish
}

found_gpu() {
  local found major minor
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
  export SFRS_CUDA=ON SFRS_CUDA_ARCHS=$major$minor python logs results package
  echo "$gpu, compute capability $major.$minor"
}

# begin STAGE SECONDS: what every stage needs first.
begin() {
  stage=$1- deadline=$((SECONDS + $2))
  if ! part library 115 bash -c library; then
    skip others "not run: there is nothing to run"
    finish
  fi
}

look() {
  begin look 150
  part here 20 bash -c here
  part facts 20 "$python" -m sfrs_ext
  part primitives 30 bash -c primitives
  part tests 60 bash -c 'tests -k "layout or every_shape or same_bits or regions or quarters or tokens or tf32"'
  part benchmarks $((deadline - SECONDS)) "$python" -m benchmarks.gpu --out "$results-look" --quick \
    --seconds $((deadline - SECONDS > 25 ? deadline - SECONDS - 15 : 10))
}

full() {
  begin full 360
  part tests 100 bash -c tests
  if command -v compute-sanitizer > /dev/null; then
    part memcheck 50 bash -c 'sanitize memcheck'
    part racecheck 40 bash -c 'sanitize racecheck --few'
  else
    skip sanitizer "no compute-sanitizer"
  fi
  local left=$((deadline - SECONDS - 50))
  part benchmarks $((left + 20)) "$python" -m benchmarks.gpu --out "$results" \
    --seconds $((left > 180 ? 180 : left > 20 ? left : 20))
  if command -v ncu > /dev/null; then part profile 60 bash -c profile; else skip profile "no ncu"; fi
}

[[ ${stages[0]} == --rehearse ]] && rehearse
for stage in "${stages[@]}"; do
  [[ $stage == look || $stage == full ]] || { echo "gpu.sh: the stages are look and full, not $stage" && exit 2; }
done
found_gpu
for stage in "${stages[@]}"; do $stage; done
finish
