#!/usr/bin/env bash
# ./run_all.sh                  every paper, then the tables (--seeds N, --preset P, --workers N, --dry-run)
# ./run_all.sh nft opsd         some papers
# ./run_all.sh nft [settings]   one paper; settings as in: repro run nft --help
# ./run_all.sh test             the tests
# ./run_all.sh fetch smol       the model of the preset smol
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
  fetch)
    exec .venv/bin/repro "$@"
    ;;
  "" | -*)
    exec .venv/bin/repro all "$@"
    ;;
  *)
    case "${2:-}" in
      "" | -*) exec .venv/bin/repro run "$@" ;;
      *) exec .venv/bin/repro all "$@" ;;
    esac
    ;;
esac
