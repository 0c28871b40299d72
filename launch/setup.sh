# Sourced by the launch commands: makes .venv with everything pinned in requirements.lock. Quick when it is there.
# Needs Linux, bash, gcc and Python 3.11 to 3.14; nothing is installed outside this folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }

# Help installs nothing: it is the comment at the head of the command, and for demo, once installed, all its options.
for argument in "$@"; do
  case $argument in
    -h | --help)
      [ "${0##*/}" != demo ] || [ ! -x "$root/.venv/bin/hebrew-asr" ] || exec "$root/.venv/bin/hebrew-asr" demo --help
      sed -n '1d; /^# shellcheck/q; s/^# //p' "$0"
      exit
      ;;
  esac
done

# A Python that can make a virtual environment with pip in it.
find_python() {
  local candidate
  for candidate in $(type -ap python3.12 python3.13 python3.11 python3.14 python3 || true); do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 to 3.14 with venv on PATH. On Debian or Ubuntu: apt-get install python3 python3-venv gcc" >&2
  return 4
}

require_linux() {
  [ "$(uname -s)" = Linux ] && return
  echo "error: this is for Linux: ranks end with their launcher by its prctl, and nothing was tried elsewhere. On macOS take a Linux container or machine, on Windows WSL" >&2
  return 4
}

require_gcc() {
  command -v gcc >/dev/null || { echo "error: gcc is missing; deepspeed builds with it. On Debian or Ubuntu: apt-get install gcc" >&2; return 4; }
}

# Shows on a terminal, in one line, what pip is at: it takes minutes, and says more than anybody reads.
on_a_line() {
  local doing what
  while read -r doing what; do
    case "$doing $what" in
      "Installing collected packages: "*) what="$(wc -w <<< "${what#*:}") packages, which takes a minute or more" ;;
      Collecting\ * | Building\ * | Installing\ *) ;;
      *) continue ;;
    esac
    [ ! -t 1 ] || printf '\r\033[K    %.70s' "$doing $what"
  done
  [ ! -t 1 ] || printf '\r\033[K'
}

install() {
  local wanted python
  require_linux
  wanted=$(cat requirements.lock pyproject.toml | cksum)
  if [ -x .venv/bin/hebrew-asr ] && [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then
    say "environment: .venv is up to date"
    return
  fi
  require_gcc
  python=$(find_python)
  say "installing into .venv with $("$python" --version) (once; some minutes, 5.5 GB)"
  [ -x .venv/bin/python ] || "$python" -m venv --clear .venv
  # Not compiled: Python does that for what is imported, a small part of it. It saves a third of the time here.
  {
    .venv/bin/python -m pip install --disable-pip-version-check --no-compile --require-hashes --no-deps -r requirements.lock \
      2>&1 >&3 | { grep -v DEPRECATION >&2 || true; } # old versions of pip tell what newer ones will do
  } 3>&1 | on_a_line
  .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
  echo "$wanted" > .venv/installed
}

(cd "$root" && install)
unset PYTHONDONTWRITEBYTECODE # as containers set it: every process would compile all that it imports, for seven seconds
export PATH="$root/.venv/bin:$PATH"
# transformers and datasets ask a hub only when a recipe names one of its models or sets.
export TOKENIZERS_PARALLELISM=false
