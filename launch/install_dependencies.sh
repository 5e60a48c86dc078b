#!/usr/bin/env bash
# Installs what Jubal needs on Debian 12 to be built, run and tested: as root, or through sudo.
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config
  openmpi-bin libopenmpi-dev openssh-client  # mpirun reaches other hosts through ssh
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libboost-program-options-dev nlohmann-json3-dev libfmt-dev libspdlog-dev
  libboost-context-dev libhwloc-dev librandom123-dev libxxhash-dev libedit-dev
  libgtest-dev libgmock-dev libbenchmark-dev libsimde-dev python3 python3-venv
)

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  echo "All packages are installed."
  exit
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "Neither root nor sudo: let somebody run  apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

run_quietly() {
  local output
  if ! output=$("$@" 2>&1); then
    printf '%s\nFailed: %s\n' "$output" "$*" >&2
    exit 1
  fi
}

echo "Installing ${missing[*]}"
run_quietly "${as_root[@]}" apt-get update
run_quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install --yes --no-install-recommends "${missing[@]}"
