# Sourced by scripts/quickstart and scripts/test: `prepare EXTRAS` leaves $python, an interpreter that has the package.
# Takes the active environment, else .venv, which it makes. Installs only when pyproject.toml or the interpreter changed.

stop() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

prepare() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
  local target="${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}" maker="${PYTHON:-python3}"
  python="$target/bin/python"
  if [ ! -x "$python" ]; then
    command -v "$maker" >/dev/null || stop "no $maker here: install Python 3.10 or newer"
    "$maker" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      stop "$("$maker" --version) is too old: install Python 3.10 or newer, or name one with PYTHON=/path/to/python3"
    "$maker" -c 'import venv, ensurepip' 2>/dev/null ||
      stop "this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv) or activate an environment"
    "$maker" -m venv "$target" || stop "could not make $target"
  fi
  local state
  state="$("$python" -c 'import hashlib, pathlib, sys
print(sys.version, sys.argv[1], hashlib.sha256(pathlib.Path("pyproject.toml").read_bytes()).hexdigest(), pathlib.Path.cwd())' "$1")"
  local stamp="$target/.lit_merge$1"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    echo "Installing lit_merge$1 and what it needs into $target: torch is large, this takes some minutes once."
    "$python" -m pip install --disable-pip-version-check $([ -t 1 ] || echo --quiet) -e ".$1" || stop "the installation failed: see pip's message above"
    echo "$state" >"$stamp"
  fi
}
