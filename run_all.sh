#!/usr/bin/env bash
# ./run_all.sh                  every paper with its default preset, then the tables
# ./run_all.sh nft [settings]   one paper; settings as in: repro run nft --help
# ./run_all.sh test             the tests
# Each makes .venv when it is missing. PYTHON names another Python than python3.
set -euo pipefail
cd "$(dirname "$0")"

if [ ! -e .venv/installed ]; then
  echo "Installing the project and its libraries into .venv (once; torch alone is several hundred MB) ..."
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[test]'
  touch .venv/installed
  echo "Installed."
fi

case "${1:-}" in
  test)
    shift
    exec .venv/bin/python -m pytest "$@"
    ;;
  "" | -*)
    failed=0
    for script in papers/*.py; do
      echo "== $script"
      .venv/bin/python "$script" "$@" || failed=1
    done
    exit $failed
    ;;
  *)
    exec .venv/bin/repro run "$@"
    ;;
esac
