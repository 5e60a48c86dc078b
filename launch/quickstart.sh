#!/usr/bin/env bash
# Installs, builds, serves the demo model from 4 ranks and streams a completion through gRPC.
#
#   launch/quickstart.sh [PROMPT]
set -euo pipefail
cd "$(dirname "$0")/.."
prompt=${1:-Once upon a time}

launch/install_dependencies.sh
cmake --preset release
cmake --build --preset release --target jubal_program

coproc server { exec build/release/jubal serve --model launch/demo -n 4 --listen 127.0.0.1:0; }
pid=$server_PID  # the variable is gone once the server has ended
trap 'kill "$pid" 2>/dev/null; wait "$pid" || true' EXIT
trap 'exit 130' INT TERM

until [[ ${line-} == *ready* ]]; do
  read -r line || { echo "The server ended before it was ready." >&2; exit 1; }
done <&"${server[0]}"
printf "%s\nPrompt: %s\n" "$line" "$prompt"

build/release/jubal chat --server "${line##* }" --max-tokens 120 --seed 1 <<<"$prompt"
