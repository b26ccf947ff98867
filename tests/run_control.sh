#!/bin/bash
# Who decides when a run ends, and what it leaves: signals, time limits, the stop file, the lock, resume, numbers that are not finite,
# frozen tensors, evaluation, and a rank that hangs.
. tests/lib.sh
begin
{ model "M-*E"
  printf 'train:\n  steps: 60\n  global_batch: 4\n  sequence_length: 31\noptimizer:\n  learning_rate: 0.003\n'
  printf 'schedule:\n  kind: wsd\n  warmup_fraction: 0.1\n  wsd_decay_steps: 20\nmoe:\n  balance: bias\ncheckpoint:\n  interval: 1000\n'; } >"$TMP/base.yaml"
deck=$TMP/base.yaml
says() { grep -q -E -- "$2" "$TMP/$1.log" && ok "$3" || fail "$3" "no '$2' in: $(tail -n 5 "$TMP/$1.log" | tr '\n' '|')"; }
# alike A B NAME: two runs' metrics and last weights, bit for bit
alike() {
    if [ "$(exact "$TMP/$1")" != "$(exact "$TMP/$2")" ]; then fail "$3" "metrics: $(diff <(exact "$TMP/$1") <(exact "$TMP/$2") | head -n 4 | tr '\n' ' ')"
    elif ! cmp -s "$TMP/$1/checkpoints/step-00000060/model.safetensors" "$TMP/$2/checkpoints/step-00000060/model.safetensors"; then fail "$3" "weights differ"
    else ok "$3"; fi
}
# wait_for FILE LINES: until it has so many, 20 s at most
wait_for() { for _ in $(seq 200); do [ "$(cat "$1" 2>/dev/null | wc -l)" -ge "$2" ] && return; sleep 0.1; done; }
slow="train.global_batch=64 train.sequence_length=97"

go alone 0 2 "$deck" $slow
for signal in TERM USR1 INT; do
    mpi 2 "$MESTAR" "$deck" $slow run.output="$TMP/sig$signal" >"$TMP/sig$signal.log" 2>&1 </dev/null &
    pid=$!
    wait_for "$TMP/sig$signal/metrics.jsonl" 5
    rank=$(pgrep -f "run.output=$TMP/sig$signal( |\$)" | tail -n 1)
    kill -$signal "$rank"
    wait $pid; code=$?
    [ $code = 3 ] && ok "signal-$signal" || fail "signal-$signal" "left with $code: $(tail -n 3 "$TMP/sig$signal.log")"
    [ "$(words "$TMP/sig$signal/summary.yaml" exit_code)" = 3 ] && ok "summary-$signal" || fail "summary-$signal" "$(cat "$TMP/sig$signal/summary.yaml")"
    go "sig$signal" 0 2 "$deck" $slow && alike "sig$signal" alone "continued-$signal"
done
go "sigTERM" 0 2 "$deck" $slow && says sigTERM "[Ff]inished" "finished-again"

mkdir -p "$TMP/stopfile"; touch "$TMP/stopfile/stop"
go stopfile 3 2 "$deck" $slow && { [ ! -e "$TMP/stopfile/stop" ] && ok stop-file || fail stop-file "still there"; }
go stopfile 0 2 "$deck" $slow && alike stopfile alone continued-stop-file
go walltime 3 2 "$deck" $slow run.walltime=0:0:1 checkpoint.interval=7
go walltime 0 2 "$deck" $slow && alike walltime alone continued-walltime
# with nothing to be saved an early stop has done all it was asked for
for i in 1 2; do go unsaved 0 2 "$deck" $slow train.steps=100000 run.walltime=0:0:1 checkpoint.interval=0 && says unsaved "early, by the time limit; checkpoint.interval is 0" unsaved-$i; done
[ "$(words "$TMP/unsaved/summary.yaml" exit_code)" = 0 ] && [ ! -e "$TMP/unsaved/checkpoints" ] && ok unsaved-leaves-nothing || fail unsaved-leaves-nothing "$(ls "$TMP/unsaved")"
go bad-walltime 2 1 "$deck" run.walltime=soon && says bad-walltime "walltime" bad-walltime

# what may not change on the way, what must be there, what starts anew
go sigTERM 2 2 "$deck" $slow optimizer.learning_rate=0.1 && says sigTERM "learning_rate: is 0.1, but .* 0.003" fixed-key
go must 2 1 "$deck" checkpoint.resume=must && says must "holds no checkpoint" must
[ ! -e "$TMP/must" ] && ok must-leaves-nothing || fail must-leaves-nothing "$TMP/must exists"
go short 0 1 "$deck" train.steps=5 && go short 0 1 "$deck" train.steps=5 checkpoint.resume=never &&
    { [ "$(wc -l <"$TMP/short/metrics.jsonl")" = 5 ] && ok never || fail never "$(wc -l <"$TMP/short/metrics.jsonl") lines"; }
go short 0 2 "$deck" train.steps=8 parallel.tensor=2 && { [ "$(wc -l <"$TMP/short/metrics.jsonl")" = 8 ] && ok other-mesh || fail other-mesh lines; }
rm "$TMP/short/checkpoints/latest"
go short 0 1 "$deck" train.steps=9 && says short "continues after step 8" latest-lost
echo step-00000077 >"$TMP/short/checkpoints/latest"
go short 0 1 "$deck" train.steps=10 && says short "continues after step 9" latest-wrong
mkfifo "$TMP/short/trace.pipe"
go short 1 1 "$deck" train.steps=11 && says short "trace.pipe is neither file nor folder" pipe-in-folder
rm "$TMP/short/trace.pipe"
rm "$TMP/short/checkpoints/step-00000010/resume/state.json"
go short 2 1 "$deck" train.steps=11 && says short "state.json" damaged-state

# one run at a time
"$MESTAR" "$deck" $slow train.steps=4000 run.output="$TMP/locked" >"$TMP/locked.log" 2>&1 </dev/null &
pid=$!
wait_for "$TMP/locked/metrics.jsonl" 1
( sleep 3; kill -TERM $pid ) &
if "$MESTAR" "$deck" $slow train.steps=4000 run.walltime=0:0:4 run.output="$TMP/locked" >"$TMP/second.log" 2>&1; then fail lock "the second run ended with 0"
elif [ $? = 3 ]; then ok lock; else fail lock "$(tail -n 2 "$TMP/second.log")"; fi
wait $pid

# numbers that are not finite
go blown 4 1 "$deck" optimizer.learning_rate=100 optimizer.weight_decay=100 train.steps=60 schedule.kind=constant schedule.warmup_fraction=0 train.clip=0 && says blown "not finite: (layer|the weight|the gradient|the embedding)" blown
go blown-skip 0 1 "$deck" optimizer.learning_rate=100 optimizer.weight_decay=100 train.steps=60 schedule.kind=constant schedule.warmup_fraction=0 train.clip=0 train.on_nonfinite=skip &&
    { [ "$(grep -c ': null' "$TMP/blown-skip/metrics.jsonl")" -gt 2 ] && ok skip || fail skip "$(head -c 400 "$TMP/blown-skip/metrics.jsonl")"; }

# frozen tensors and groups
go start 0 1 "$deck" train.steps=0
go frozen 0 1 "$deck" train.steps=4 "train.freeze=[backbone.embeddings.weight, 'backbone.layers.0.*']"
"$TENSORS" same "$TMP/start/checkpoints/step-00000000" "$TMP/frozen/checkpoints/step-00000004" >"$TMP/differ" 2>&1
grep -q "embeddings\|layers\.0\." "$TMP/differ" && fail freeze "$(head -n 3 "$TMP/differ")" || ok freeze
grep -q "layers\.1\." "$TMP/differ" && ok freeze-not-all || fail freeze-not-all "$(head -n 3 "$TMP/differ")"
go frozen-recompute 0 1 "$deck" train.steps=4 "train.freeze=[backbone.embeddings.weight, 'backbone.layers.0.*']" memory.recompute=full &&
    { cmp -s "$TMP/frozen/checkpoints/step-00000004/model.safetensors" "$TMP/frozen-recompute/checkpoints/step-00000004/model.safetensors" && ok freeze-recompute || fail freeze-recompute differs; }
go no-such-tensor 2 1 "$deck" "train.freeze=[backbone.nothing]" && says no-such-tensor "backbone.nothing" no-such-tensor
go half-block 2 1 "$deck" "train.freeze=['*.q_proj.weight']" && says half-block "stored as one" half-block
go groups 0 1 "$deck" train.steps=4 "optimizer.groups=['* rate=0']" &&
    { "$TENSORS" same "$TMP/start/checkpoints/step-00000000" "$TMP/groups/checkpoints/step-00000004" 2>&1 | grep -v correction_bias | grep -q weight && fail groups "a rate of 0 changed weights" || ok groups; }

# evaluation: the same on every mesh, and what training measures
printf 'run:\n  mode: evaluate\nmodel:\n  from: %s\ntrain:\n  sequence_length: 31\nevaluate:\n  samples: 13\n' "$TMP/start" >"$TMP/evaluate.yaml"
go evaluated 0 1 "$TMP/evaluate.yaml" && go evaluated2 0 4 "$TMP/evaluate.yaml" parallel.tensor=2 train.micro_batch=2 &&
    { a=$(sed -E 's/.*"loss": ([^,]*).*/\1/' "$TMP/evaluated/evaluation.json"); b=$(sed -E 's/.*"loss": ([^,]*).*/\1/' "$TMP/evaluated2/evaluation.json")
      near "$a" "$b" 1e-6 && ok evaluate || fail evaluate "$a and $b"; }

# a rank that hangs is named
mpi 2 "$MESTAR" "$deck" $slow train.steps=4000 run.watchdog=3 run.output="$TMP/hung" >"$TMP/hung.log" 2>&1 </dev/null &
pid=$!
wait_for "$TMP/hung/metrics.jsonl" 2
victim=$(pgrep -f "run.output=$TMP/hung( |\$)" | tail -n 1)
kill -STOP "$victim"; began=$(date +%s)
( sleep 20; kill -9 "$victim" 2>/dev/null ) & killer=$!
wait $pid; code=$?
kill -CONT "$victim" 2>/dev/null; kill -9 "$victim" 2>/dev/null; kill $killer 2>/dev/null
[ $code != 0 ] && [ $(($(date +%s) - began)) -lt 15 ] && ok hang-ends || fail hang-ends "code $code after $(($(date +%s) - began)) s"
# in the folder: whether the launcher still passes on what was said on the terminal is the launcher's affair
cat "$TMP/hung/ranks/hung.txt" >>"$TMP/hung.log"
says hung "nothing moved for 3 s" hang-told
says hung "rank [01] \(pid $victim" hang-named
finish
