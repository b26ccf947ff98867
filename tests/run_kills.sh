#!/bin/bash
# Killed at any moment, a run goes on as if nothing had happened: kill -9 of a random rank, of mpirun or of what it started, saving
# included; every metric and the last weights are those of the run that was left alone, bit for bit. LONG=1: 200 kills.
. tests/lib.sh
begin
kills=${KILLS:-12}; [ -z "$LONG" ] || kills=200; [ -z "$SHORT" ] || kills=3
{ model "M-*E"
  printf 'train:\n  steps: 300\n  global_batch: 4\n  sequence_length: 31\noptimizer:\n  learning_rate: 0.003\n'
  printf 'moe:\n  balance: bias\ncheckpoint:\n  interval: 7\n  keep: 2\n'; } >"$TMP/base.yaml"
final=checkpoints/step-00000300/model.safetensors
RANDOM=${SEED:-7}

# descendants PID: it and all that come from it
descendants() {
    echo "$1"
    for child in $(ps -o pid= --ppid "$1"); do descendants "$child"; done
}

# campaign NAME N KILLS overrides...: one run on N ranks, killed so many times, against one left alone
campaign() {
    name=$1; n=$2; left=$3; shift 3
    go "$name-alone" 0 "$n" "$TMP/base.yaml" "$@" || return
    done=0; longest=0
    while [ "$left" -gt 0 ]; do
        ( [ "$n" = 1 ] && exec "$MESTAR" "$TMP/base.yaml" run.output="$TMP/$name" "$@"
          mpi "$n" "$MESTAR" "$TMP/base.yaml" run.output="$TMP/$name" "$@" ) >"$TMP/$name.log" 2>&1 </dev/null &
        shell=$!
        sleep "0.$((RANDOM % 9))$((RANDOM % 10))"
        mapfile -t alive < <(descendants "$shell" | tail -n +2)
        [ "${#alive[@]}" -gt 0 ] || alive=("$shell")
        kill -9 "${alive[$((RANDOM % ${#alive[@]}))]}" 2>/dev/null
        began=$(date +%s%N)
        wait "$shell" 2>/dev/null
        while pgrep -f "run.output=$TMP/$name( |\$)" >/dev/null; do
            [ $((($(date +%s%N) - began) / 1000000000)) -lt 10 ] || { fail "$name" "ranks live 10 s after a kill"; pkill -9 -f "run.output=$TMP/$name"; return; }
            sleep 0.05
        done
        for f in "$TMP/$name"/checkpoints/step-*; do
            case $f in *.part*|*\*) ;; *) [ -s "$f/model.safetensors" ] && [ -s "$f/resume/state.json" ] || { fail "$name" "half a checkpoint: $f"; return; } ;; esac
        done
        left=$((left - 1)); done=$((done + 1))
        if [ -e "$TMP/$name/$final" ] || { [ -f "$TMP/$name/summary.yaml" ] && [ "$left" -gt 0 ]; }; then     # it finished before the kill: the next begins anew
            [ ! -f "$TMP/$name/summary.yaml" ] || same_as "$name" || return
            rm -rf "${TMP:?}/$name"
        fi
    done
    go "$name" 0 "$n" "$TMP/base.yaml" "$@" || return
    same_as "$name" && ok "$name ($done kills)"
}

same_as() {
    if [ "$(exact "$TMP/$1")" != "$(exact "$TMP/$1-alone")" ]; then
        fail "$1" "metrics differ: $(diff <(exact "$TMP/$1") <(exact "$TMP/$1-alone") | head -n 4 | tr '\n' ' ')"; return 1
    fi
    cmp -s "$TMP/$1/$final" "$TMP/$1-alone/$final" || { fail "$1" "the last weights differ"; return 1; }
}

campaign one 1 $((kills / 4))
campaign data2 2 $((kills / 4)) parallel.data=2
campaign tensor2 2 $((kills / 4)) parallel.tensor=2 parallel.sequence=true
campaign four 4 $((kills - 3 * (kills / 4))) parallel.tensor=2
finish
