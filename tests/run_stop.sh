#!/bin/bash
# Generation and evaluation end early when asked, by a signal to any rank, the time limit or the stop file: with 3, with the answers that
# had ended and no others, saying so; and the same command then does the whole of it.
. tests/lib.sh
begin
{ model "M-*E"; printf 'train:\n  steps: 0\n'; } >"$TMP/model.yaml"
go model 0 1 "$TMP/model.yaml"
printf 'run:\n  mode: generate\nmodel:\n  from: %s\ngenerate:\n  prompts: %s\n  max_new_tokens: 300\n  temperature: 1\n' "$TMP/model" "$TMP/prompts.jsonl" >"$TMP/generate.yaml"
for i in $(seq 60); do echo "{\"ids\": [$i, 7, $((i + 9))]}"; done >"$TMP/prompts.jsonl"
printf 'run:\n  mode: evaluate\nmodel:\n  from: %s\ntrain:\n  sequence_length: 31\nevaluate:\n  samples: 4000000\n' "$TMP/model" >"$TMP/evaluate.yaml"
says() { grep -q -E -- "$2" "$TMP/$1.log" && ok "$3" || fail "$3" "no '$2' in: $(tail -n 5 "$TMP/$1.log" | tr '\n' '|')"; }
# wait_for FILE LINES: until it has so many, 20 s at most
wait_for() { for _ in $(seq 400); do [ "$(cat "$1" 2>/dev/null | wc -l)" -ge "$2" ] && return; sleep 0.05; done; }
# told NAME: its words say why it ended and what is there, and so does its summary
told() {
    says "$1" "stopped .*early, by $2; the same command starts over" "$1-told"
    [ "$(words "$TMP/$1/summary.yaml" exit_code)" = 3 ] && ok "$1-summary" || fail "$1-summary" "$(cat "$TMP/$1/summary.yaml")"
}
# some NAME: some of the answers are there, and they are those of the run that was left alone
some() {
    n=$(wc -l <"$TMP/$1/generations.jsonl")
    if [ "$n" -gt 59 ]; then fail "$1" "$n answers of 60"
    elif grep -v -x -q -F -f "$TMP/whole/generations.jsonl" "$TMP/$1/generations.jsonl"; then fail "$1" "an answer is not what it was"
    else ok "$1"; fi
}

go whole 0 1 "$TMP/generate.yaml"
# stops NAME RANKS SIGNAL overrides...: told to stop while answers come
stops() {
    name=$1 n=$2 signal=$3; shift 3
    mpi "$n" "$MESTAR" "$TMP/generate.yaml" generate.max_new_tokens=300 run.output="$TMP/$name" "$@" >"$TMP/$name.log" 2>&1 </dev/null &
    pid=$!
    wait_for "$TMP/$name/generations.jsonl" 2
    kill -"$signal" "$(pgrep -f "$MESTAR .*run.output=$TMP/$name( |\$)" | tail -n 1)"
    wait $pid; code=$?
    [ $code = 3 ] && some "$name" && told "$name" "a signal" || fail "$name" "left with $code, want 3: $(tail -n 3 "$TMP/$name.log")"
}
stops term 1 TERM generate.batch=1
stops usr1 2 USR1 generate.batch=2 parallel.tensor=2
stops int 4 INT generate.batch=1 parallel.data=2 parallel.tensor=2
go int 0 4 "$TMP/generate.yaml" generate.batch=1 parallel.data=2 parallel.tensor=2 &&
    { cmp -s "$TMP/int/generations.jsonl" "$TMP/whole/generations.jsonl" && ok started-over || fail started-over "other answers"; }
# answers of one token: between rounds
for i in $(seq 60); do cat "$TMP/prompts.jsonl"; done | sed 's/7, /7, 1, 2, /' >"$TMP/single.jsonl"
for i in 1 2 3 4; do cat "$TMP/single.jsonl"; done >"$TMP/singles.jsonl"
go single 3 2 "$TMP/generate.yaml" generate.prompts="$TMP/singles.jsonl" generate.max_new_tokens=1 generate.batch=1 run.walltime=0:0:1 parallel.tensor=2 && told single "the time limit"
long="generate.max_new_tokens=200000 generate.batch=4 generate.temperature=0"     # greedily it comes to no end
go limit 3 2 "$TMP/generate.yaml" $long run.walltime=0:0:2 && told limit "the time limit"
mkdir -p "$TMP/file"; touch "$TMP/file/stop"
go file 3 2 "$TMP/generate.yaml" $long && told file "a file named stop" && { [ ! -e "$TMP/file/stop" ] && ok stop-file || fail stop-file "still there"; }
go one 3 1 "$TMP/generate.yaml" $long generate.prompts= 'generate.prompt_ids=[1, 2]' run.walltime=0:0:2 && told one "the time limit"
[ ! -s "$TMP/one/generations.jsonl" ] && ok no-half-answer || fail no-half-answer "$(head -c 300 "$TMP/one/generations.jsonl")"

# evaluation: no number is left that is not that of the whole
go evaluate 0 2 "$TMP/evaluate.yaml" evaluate.samples=10
go evaluate 3 2 "$TMP/evaluate.yaml" run.walltime=0:0:2 && told evaluate "the time limit"
says evaluate "loss so far 4\.6.* of 2000000 rounds" evaluate-so-far
[ ! -e "$TMP/evaluate/evaluation.json" ] && ok no-half-evaluation || fail no-half-evaluation "$(cat "$TMP/evaluate/evaluation.json")"
mpi 2 "$MESTAR" "$TMP/evaluate.yaml" run.output="$TMP/asked" >"$TMP/asked.log" 2>&1 </dev/null &
pid=$!
wait_for "$TMP/asked/log.txt" 0; for _ in $(seq 100); do [ -e "$TMP/asked/used.yaml" ] && break; sleep 0.05; done
kill -TERM "$(pgrep -f "$MESTAR .*run.output=$TMP/asked( |\$)" | tail -n 1)"
wait $pid; code=$?
[ $code = 3 ] && told asked "a signal" || fail asked "left with $code, want 3: $(tail -n 3 "$TMP/asked.log")"
finish
