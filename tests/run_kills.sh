#!/bin/bash
# Killed at any moment, a run goes on as if nothing had happened: kill -9 of a random rank, of mpirun or of what it started, saving
# included; every metric and the last weights are those of the run that was left alone, bit for bit. LONG=1: 252 kills over eleven
# meshes (LONG=pipelines: the 52 of those with pipelines), most of them of runs that save at every step or two, so that most kills meet a save.
. tests/lib.sh
begin
{ model "M-*E"
  printf 'train:\n  steps: 300\n  global_batch: 4\n  sequence_length: 31\noptimizer:\n  learning_rate: 0.003\n'
  printf 'moe:\n  balance: bias\ncheckpoint:\n  interval: 7\n  keep: 2\n'; } >"$TMP/base.yaml"
RANDOM=${SEED:-7}
all=0; saving=0; slowest=0

# descendants PID: it and all that come from it
descendants() {
    echo "$1"
    for child in $(ps -o pid= --ppid "$1"); do descendants "$child"; done
}

# after_kill NAME: all its processes must end within 10 s, and no checkpoint may be half there
after_kill() {
    local began now
    began=$(date +%s%N)
    wait "$shell" 2>/dev/null
    while pgrep -f "run.output=$TMP/$1( |\$)" >/dev/null; do
        now=$((($(date +%s%N) - began) / 1000000))
        [ $now -lt 10000 ] || { fail "$1" "ranks live 10 s after a kill"; pkill -9 -f "run.output=$TMP/$1( |\$)"; return 1; }
        sleep 0.05
    done
    now=$((($(date +%s%N) - began) / 1000000))
    [ $now -le $slowest ] || slowest=$now
    for f in "$TMP/$1"/checkpoints/step-*; do
        case $f in
        *\*) ;;
        *.part*) saving=$((saving + 1)) ;;
        *) [ -s "$f/model.safetensors" ] && [ -s "$f/resume/state.json" ] || { fail "$1" "half a checkpoint: $f"; return 1; } ;;
        esac
    done
}

# campaign NAME N KILLS overrides...: one run on N ranks, killed so many times, against one left alone
campaign() {
    local name=$1 n=$2 left=$3 victims
    shift 3
    go "$name-alone" 0 "$n" "$TMP/base.yaml" "$@" || return
    local kills=$left
    while [ "$left" -gt 0 ]; do
        ( [ "$n" = 1 ] && exec "$MESTAR" "$TMP/base.yaml" run.output="$TMP/$name" "$@"
          mpi "$n" "$MESTAR" "$TMP/base.yaml" run.output="$TMP/$name" "$@" ) >"$TMP/$name.log" 2>&1 </dev/null &
        shell=$!
        sleep "$((RANDOM % ${within:-1})).$((RANDOM % 9))$((RANDOM % 10))"
        mapfile -t victims < <(descendants "$shell" | tail -n +2)
        [ "${#victims[@]}" -gt 0 ] || victims=("$shell")
        kill -9 "${victims[$((RANDOM % ${#victims[@]}))]}" 2>/dev/null
        after_kill "$name" || return
        left=$((left - 1)); all=$((all + 1))
        if [ -f "$TMP/$name/summary.yaml" ]; then     # it finished before the kill: the next begins anew
            same_as "$name" || return
            rm -rf "${TMP:?}/$name"
        fi
    done
    go "$name" 0 "$n" "$TMP/base.yaml" "$@" || return
    same_as "$name" && ok "$name ($kills kills)"
}

# same_as NAME: metrics and last weights are those of NAME-alone
same_as() {
    local last
    last=checkpoints/$(cat "$TMP/$1-alone/checkpoints/latest")/model.safetensors
    if [ "$(exact "$TMP/$1")" != "$(exact "$TMP/$1-alone")" ]; then
        fail "$1" "metrics differ: $(diff <(exact "$TMP/$1") <(exact "$TMP/$1-alone") | head -n 4 | tr '\n' ' ')"; return 1
    fi
    cmp -s "$TMP/$1/$last" "$TMP/$1-alone/$last" || { fail "$1" "the last weights differ"; return 1; }
}

t=parallel.tensor d=parallel.data s=parallel.sequence every=checkpoint.interval p=parallel.pipeline how=parallel.schedule
pipelines() { # KILLS EACH, over three pipelines
    campaign pipe2-zero-bubble 2 "$1" $p=2 $how=zero-bubble $every=2
    campaign pipe2-zbv-data2 4 "$1" $p=2 $how=zbv $d=2 $every=3
    campaign pipe4 4 "$1" $p=4 $every=1
    campaign pipe2-interleaved-tensor2 4 "$1" $p=2 parallel.virtual_stages=2 $t=2 $every=2
}
if [ -z "$LONG" ]; then
    kills=${KILLS:-12}; [ -z "$SHORT" ] || kills=4
    campaign one 1 $((kills / 4))
    campaign data2 2 $((kills / 4)) $d=2
    campaign tensor2 2 $((kills / 4)) $t=2 $s=true $every=1
    campaign four 4 $((kills / 4)) $t=2
    campaign pipe2-zbv 2 $((kills / 4)) $p=2 $how=zbv $every=1
elif [ "$LONG" = pipelines ]; then
    within=2
    pipelines "${KILLS:-13}"
    echo "$all kills, $saving of them while a checkpoint was being written; the last process was gone after $slowest ms at most"
else
    within=2
    campaign one 1 20 $every=2
    campaign data2 2 30 $d=2 $every=1
    campaign tensor2 2 30 $t=2 $s=true $every=1
    campaign tensor2-seldom 2 20 $t=2
    campaign data2-tensor2 4 40 $d=2 $t=2 $every=1
    campaign tensor4 4 30 $t=4 $s=true $every=2     # two groups of Mamba heads and two key and value heads, each held by two ranks
    campaign data4 4 30 $d=4 $every=2
    pipelines 13
    echo "$all kills, $saving of them while a checkpoint was being written; the last process was gone after $slowest ms at most"
fi
finish
