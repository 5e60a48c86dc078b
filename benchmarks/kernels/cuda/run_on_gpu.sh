#!/usr/bin/env bash
# On a machine with a GPU: builds kernels alone, holds them to their specifications, looks for
# memory errors and races, and times every operation. Takes less than ten minutes. Needs CUDA,
# CMake and g++; fmt, GoogleTest and Random123 are taken from build/gpu_dependencies if
# collect_dependencies.sh has put them there, else from where they are installed.
#
#   benchmarks/kernels/cuda/run_on_gpu.sh [RESULTS]     build/gpu_results.txt; RESULTS.json, too
#
# Ends with 0 when all steps passed, 77 when there is no GPU, otherwise 1. All that was said stands
# in RESULTS.
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit 1
results=${1-build/gpu_results.txt}
build=build/gpu
dependencies=build/gpu_dependencies
# What is small enough to be run forty times slower, and has every kernel.
sanitizer_filter='*:-*Limits*:*Refuses*:*ManyTokens*:*RealVocabulary*'

if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "no GPU here" >&2
  exit 77
fi
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
mkdir -p build "$(dirname "$results")"
: >"$results" || exit 1

say() { printf '%s\n' "$@" | tee -a "$results"; }

outcomes=()
failed=0
# step NAME SECONDS COMMAND…: runs it, at most so long, and notes how it ended.
step() {
  local name=$1 seconds=$2 begin=$SECONDS status
  shift 2
  say "" "## $name" ""
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$results"
  status=${PIPESTATUS[0]}
  case $status in
    0) outcomes+=("passed   $name, $((SECONDS - begin)) s") ;;
    124 | 137) outcomes+=("FAILED   $name: not done after $seconds s") ;;
    *) outcomes+=("FAILED   $name: status $status after $((SECONDS - begin)) s") ;;
  esac
  [[ $status -eq 0 ]] || failed=1
  return "$status"
}

sanitize() {  # TOOL
  local tests=$build/tests/kernels_cuda_cuda_gpus
  step "compute-sanitizer $1" 40 compute-sanitizer --tool "$1" --error-exitcode 99 \
    "$tests" --gtest_brief=1 --gtest_filter="$sanitizer_filter"
}

commit=$(git describe --always --dirty 2>/dev/null || cat $dependencies/commit 2>/dev/null ||
  echo unknown)
say "# GPU results" "" \
  "date     $(date -u '+%Y-%m-%d %H:%M') UTC" \
  "commit   $commit" \
  "GPU      $(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | paste -s -d ';')" \
  "driver   $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)" \
  "nvcc     $(nvcc --version | sed -n 's/.*, release //p')" \
  "g++      $(g++ -dumpfullversion)"

options=(-DCMAKE_BUILD_TYPE=Release -DJUBAL_KERNELS_ONLY=ON -DJUBAL_CUDA=ON)
if [[ -d $dependencies ]]; then options+=(-DJUBAL_VENDORED="$PWD/$dependencies"); fi
if command -v ninja >/dev/null; then options+=(-G Ninja); fi

if step configure 30 cmake -S . -B $build "${options[@]}" &&
  step build 240 cmake --build $build --parallel "$(nproc)" \
    --target kernels_cuda_cuda_gpus kernels_cuda_gpu_benchmark; then
  step conformance 60 ctest --test-dir $build -L gpu --output-on-failure --no-tests=error
  step benchmark 90 $build/benchmarks/kernels_cuda_gpu_benchmark --json "$results.json"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do sanitize $tool; done
  else
    outcomes+=("skipped  compute-sanitizer: not here")
  fi
fi

say "" "## Outcome" "" "${outcomes[@]}" "" "$SECONDS s in all"
exit "$failed"
