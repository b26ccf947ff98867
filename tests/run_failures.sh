#!/bin/bash
# A rank is killed, and a rank hangs, in every kind of group: the two of a tensor axis, of a data axis, of a pipeline, and on a mesh of
# all three; LONG=1: of context, of experts, of shared heads, of tied embeddings, of stages round and round. All ranks end within seconds, and it is said who it was, where, and in the middle of what; of the others, for which group
# they wait. SEED decides who and when.
. tests/lib.sh
begin
RANDOM=${SEED:-3}
{ model "M-*EM-E*"
  printf 'train:\n  steps: 100000\n  global_batch: 8\n  sequence_length: 97\ncheckpoint:\n  interval: 0\n'; } >"$TMP/deck.yaml"
action="step [1-9][0-9]*, (forward|backward|backward input|backward weight|(wait )?(send|receive) (activation|gradient), chunk [01], micro-batch [0-7]|update|data)"

# launch NAME N overrides...: starts it and waits for three steps; sets $shell, and $victim to a rank by chance
launch() {
    local name=$1 n=$2 ranks; shift 2
    mpi "$n" "$MESTAR" "$TMP/deck.yaml" run.output="$TMP/$name" "$@" >"$TMP/$name.log" 2>&1 </dev/null &
    shell=$!
    for _ in $(seq 300); do [ "$(cat "$TMP/$name/metrics.jsonl" 2>/dev/null | wc -l)" -ge 3 ] && break; sleep 0.1; done
    sleep "0.$((RANDOM % 9))"
    mapfile -t ranks < <(for pid in $(pgrep -f "run.output=$TMP/$name( |\$)"); do [ "$(cat "/proc/$pid/comm")" = "$(basename "$MESTAR")" ] && echo "$pid"; done)
    [ "${#ranks[@]}" = "$n" ] || { fail "$name" "${#ranks[@]} ranks run, want $n: $(tail -n 2 "$TMP/$name.log" | tr '\n' '|')"; pkill -9 -f "run.output=$TMP/$name( |\$)"; return 1; }
    victim=${ranks[$((RANDOM % n))]}
}

# ended NAME SECONDS: the run must be over by then, with nothing left of it
ended() {
    local began; began=$(date +%s)
    while pgrep -f "run.output=$TMP/$1( |\$)" >/dev/null; do
        [ $(($(date +%s) - began)) -lt "$2" ] || { fail "$1" "ranks are there after $2 s"; pkill -9 -f "run.output=$TMP/$1( |\$)"; return 1; }
        sleep 0.1
    done
    wait $shell 2>/dev/null
    return 0
}

# groups NAME FILE GROUP...: somebody waited for one of them
groups() {
    local name=$1 file=$2; shift 2
    grep -q -E "waiting for group '($(echo "$*" | sed 's/ /|/g; s/_/ /g'))'" "$file" && ok "$name-group" || fail "$name-group" "want one of $*: $(tr '\n' '|' <"$file")"
}

# try NAME N GROUPS overrides...
try() {
    local name=$1 n=$2 groups=$3; shift 3
    launch "$name-killed" "$n" "$@" || return
    kill -9 "$victim"
    ended "$name-killed" 10 && ok "$name-killed-ends"
    go "$name-killed" 0 1 "$TMP/deck.yaml" train.steps=1 checkpoint.resume=never
    grep -q -E "rank [0-7] \(pid $victim on [^)]*\): $action" "$TMP/$name-killed.log" && ok "$name-killed-named" || fail "$name-killed-named" "$(grep -A9 NOTE "$TMP/$name-killed.log" | tr '\n' '|')"
    launch "$name-hung" "$n" run.watchdog=2 "$@" || return
    kill -STOP "$victim"
    ( sleep 15; kill -9 "$victim" 2>/dev/null ) & killer=$!
    ended "$name-hung" 14 && ok "$name-hung-ends"
    kill $killer 2>/dev/null; wait $killer 2>/dev/null
    cat "$TMP/$name-hung/ranks/hung.txt" >>"$TMP/$name-hung.log"     # a launcher need not pass on what was said last
    grep -q -E "rank [0-7] \(pid $victim on [^)]*\): $action" "$TMP/$name-hung.log" && ok "$name-hung-named" || fail "$name-hung-named" "$(grep -A9 'nothing moved' "$TMP/$name-hung.log" | tr '\n' '|')"
    groups "$name-hung" "$TMP/$name-hung/ranks/hung.txt" $groups
}

try pipeline 2 "stage_0_to_1 stage_1_to_0 world pipeline" parallel.pipeline=2 parallel.schedule=zbv
[ -n "$SHORT" ] || try tensor 2 "tensor world" parallel.tensor=2
[ -n "$SHORT" ] || try data 2 "data world replicas" parallel.data=2
[ -n "$SHORT" ] || try all 8 "tensor data world replicas pipeline stage_0_to_1 stage_1_to_0" parallel.pipeline=2 parallel.tensor=2 parallel.data=2
if [ -n "$LONG" ]; then # the groups that only some meshes have
    try context 2 "context sample world replicas" parallel.context=2 train.sequence_length=96
    try expert 4 "expert data sample expert_data world replicas" parallel.data=4 parallel.expert=4
    try shared 4 "tensor share_of_2 world" parallel.tensor=4
    try ends 4 "stage_0_to_1 stage_1_to_0 stage_1_to_2 stage_2_to_1 stage_2_to_3 stage_3_to_2 ends_0_to_3 world pipeline" parallel.pipeline=4 parallel.schedule=zero-bubble model.tie_word_embeddings=true
    try round 3 "stage_0_to_1 stage_1_to_0 stage_1_to_2 stage_2_to_1 stage_2_to_0 stage_0_to_2 world pipeline" parallel.pipeline=3 parallel.virtual_stages=2
fi
finish
