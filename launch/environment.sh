# Sourced by the launchers: variables of every run, how options are read, how a run is waited for and judged.
# shellcheck disable=SC2034 # what read_options sets is read by them

# Batches have many shapes: memory that grows in place leaves no gaps of other sizes, which end as "out of memory".
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Ranks print at once: what a killed rank said last would be lost in a buffer.
export PYTHONUNBUFFERED=1

# Until a run begins, a signal to stop ends the script once what it is at has ended. Process 1 of a container, which has
# no handler, would not hear of it.
trap 'echo "stopped before the run began; start the same command again" >&2; exit 75' TERM INT HUP USR1 USR2 XCPU

# Of "$@": sets dry (0 or 1), options (all but --dry-run), asked (those that doctor takes too) and run (the directory).
read_options() {
  dry=0 run='' options=() asked=()
  local recipe=round2
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) sed -n '1d; /^#SBATCH/q; /^#/!q; s/^# //p' "$0"; exit ;;
      --dry-run) dry=1; shift; continue ;;
      --run=*) run=${1#*=} ;;
      --recipe=*) recipe=${1#*=}; asked+=("$1") ;;
      --ds=* | --set=* | --data=*) asked+=("$1") ;;
      --run | --ds | --set | --data | --recipe)
        [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
        case $1 in --run) run=$2 ;; --recipe) recipe=$2 ;; esac
        [ "$1" = --run ] || asked+=("$1" "$2")
        options+=("$1"); shift ;;
    esac
    options+=("$1"); shift
  done
  if [ -z "$run" ]; then
    run=runs/$(basename "$recipe" .json)
    options+=(--run "$run")
  fi
  asked+=(--run "$run")
}

# Ends the script where read_options was given no profile: what follows takes a minute before it would say so.
require_profile() {
  local word
  for word in "${asked[@]}"; do case $word in --ds | --ds=*) return ;; esac; done
  echo "error: give --ds PROFILE, such as --ds a100x8; hebrew-asr doctor names the one for the GPUs of a machine" >&2
  exit 2
}

# Says a command as it could be pasted.
show() { printf '%q ' "$@"; echo; }

# HEBREW_ASR_COMPILED=DIR: what is compiled is kept there too, and a machine that has compiled nothing yet takes it from
# there, so that a fresh one goes on sooner. It is code that will run as you: choose a place where you alone write.
compiled=${TORCHINDUCTOR_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/hebrew_asr/inductor}
kept=${HEBREW_ASR_COMPILED:+$HEBREW_ASR_COMPILED/compiled.tar}

take_compiled() {
  [ -n "$kept" ] && [ -f "$kept" ] && [ -z "$(ls -A "$compiled" 2>/dev/null)" ] || return 0
  local taken=$compiled.$$ # whole, or not at all
  if mkdir -p "$taken" "$compiled" && tar -xf "$kept" -C "$taken" && rmdir "$compiled" && mv "$taken" "$compiled"; then
    echo "compiled before: taken from $kept"
  else
    rm -rf "$taken"
    echo "warning: $kept could not be unpacked; all is compiled anew" >&2
  fi
}

keep_compiled() {
  [ -n "$kept" ] && [ -n "$(ls -A "$compiled" 2>/dev/null)" ] || return 0
  [ ! -f "$kept" ] || [ -n "$(find "$compiled" -type f -newer "$kept" -print -quit)" ] || return 0
  if ! { mkdir -p "${kept%/*}" && tar -cf "$kept.$$" -C "$compiled" . && mv "$kept.$$" "$kept"; }; then
    rm -f "$kept.$$"
    echo "warning: what was compiled could not be kept in $kept" >&2
  fi
}

# Starts a command and waits for it, however long its ranks take to save after a signal to stop. Returns 0 if the
# run is finished, 75 if it can go on, else what went wrong.
run_to_its_end() {
  local since code=0 trainer='' signaled=0
  take_compiled
  since=$(mktemp)
  trap 'signaled=1; kill -TERM "$trainer" 2>/dev/null || true' TERM INT HUP USR1 USR2 XCPU
  (trap - INT; exec "$@") & # else bash has it ignore Ctrl-C, which a second time means: leave without saving
  trainer=$!
  [ "$signaled" = 0 ] || kill -TERM "$trainer" 2>/dev/null || true # before it was there
  # Not in wait: a signal ends it, and if the command ends at that moment, bash has lost its code.
  while kill -0 "$trainer" 2>/dev/null; do sleep 0.2 || true; done
  wait "$trainer" || code=$?
  keep_compiled
  judge "$code" "$since" && code=0 || code=$?
  rm -f "$since"
  return "$code"
}

# judge CODE SINCE: how a run ended. summary.json is written last, so one that is newer than the file SINCE is the mark of
# a finished run, whatever a launcher returned; an older one counts where the trainer itself said that nothing is left.
judge() {
  local mark=$run/summary.json
  if [ "$mark" -nt "$2" ] || { [ "$1" = 0 ] && [ -f "$mark" ]; }; then
    echo "finished: $run/final"
    return 0
  fi
  if [ "$1" = 75 ]; then
    echo "stopped, and can go on: start the same command again" >&2
    return 75
  fi
  echo "not finished: $mark was not written; the last code was $1" >&2
  [ "$1" != 0 ] || return 1
  return "$1"
}
