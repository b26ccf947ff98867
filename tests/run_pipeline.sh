#!/bin/bash
# A pipeline is another way to do the same computation. Meshes are drawn over tensor x pipeline x virtual stages x data, with every
# schedule, uneven and empty stages, tied embeddings, experts, packed documents, recomputing, bf16. Against the same mesh without a
# pipeline not a bit of three steps' metrics and the last weights and moments changes (tied embeddings, which two stages hold: to
# rounding); against one rank losses and norm agree to rounding. LONG=1: 60 meshes and the deep ones. SEED.
. tests/lib.sh
begin
draws=${DRAWS:-12}; [ -z "$LONG" ] || draws=${DRAWS:-60}; [ -z "$SHORT" ] || draws=4
RANDOM=${SEED:-11}
set -f # patterns are full of stars
pick() { shift $((RANDOM % $#)); picked=$1; }
patterns=("M-*EM-E*" "M*" "MEM*EME*-M-ME" "-M*-")

# deck NAME PATTERN TIED: on mock data with documents of some 16 tokens and more
deck() {
    { model "$2"; echo "  moe_latent_size: 13"; echo "  tie_word_embeddings: $3"
      printf 'train:\n  steps: 3\n  global_batch: 8\n  sequence_length: 37\noptimizer:\n  learning_rate: 0.003\n'
      printf 'moe:\n  balance: bias\ncheckpoint:\n  interval: 3\n'; } >"$TMP/$1.yaml"
}

# bars PATTERN STAGES: sets drawn to the pattern with bars at random places, also beside each other
bars() {
    cut=; for _ in $(seq 2 "$2"); do cut="$cut $((RANDOM % (${#1} + 1)))"; done
    out= from=0
    for at in $(printf '%s\n' $cut | sort -n); do out="$out${1:from:at-from}|"; from=$at; done
    drawn=$out${1:from}
}

# base NAME N arguments...: that run, once
base() { [ -d "$TMP/$1" ] || go "$@"; }

steps3=checkpoints/step-00000003
# alike A B: metrics, weights and moments, bit for bit
alike() {
    [ "$(exact "$TMP/$1")" = "$(exact "$TMP/$2")" ] || { echo "metrics: $(diff <(exact "$TMP/$1") <(exact "$TMP/$2") | head -n 2 | tr '\n' ' ')"; return 1; }
    for part in "$steps3" "$steps3/resume"; do "$TENSORS" same "$TMP/$1/$part" "$TMP/$2/$part" 2>&1 | head -n 2 | grep -q . && { echo "$part differs"; return 1; }; done
    return 0
}
# close A B BOUND: first loss and norm, last loss
close() {
    near "$(metric "$TMP/$1" 1 loss)" "$(metric "$TMP/$2" 1 loss)" "$3" && near "$(metric "$TMP/$1" 1 grad_norm)" "$(metric "$TMP/$2" 1 grad_norm)" "$4" &&
        near "$(metric "$TMP/$1" 3 loss)" "$(metric "$TMP/$2" 3 loss)" "$5"
}

# peaks NAME N deck overrides...: the plan is what was measured, on every rank
peaks() {
    peaks_name=$1; peaks_n=$2; shift 2
    go "$peaks_name-plan" 0 1 plan "$@" --json run.ranks="$peaks_n" || return 1
    planned=$(grep -o '"arena_bytes": *[0-9]*' "$TMP/$peaks_name-plan.log" | sed 's/.*: *//' | tr '\n' ' ')
    measured=$(sed -n '/^peak_bytes:/,/^[a-z_]*:/p' "$TMP/$peaks_name/summary.yaml" | sed -e '1s/^peak_bytes://' -e '/^[a-z_]*:/d' | tr -c '0-9\n' ' ' | tr -s ' \n' ' ' | sed 's/^ //')
    [ "$planned" = "$measured" ] && return 0
    echo "planned '$planned', measured '$measured'"; return 1
}

i=0
while [ $i -lt "$draws" ]; do
    i=$((i + 1))
    pattern=${patterns[RANDOM % ${#patterns[@]}]}
    pick false false true; tied=$picked; pick 1 1 2; t=$picked; pick 1 1 2; d=$picked
    pick 2 2 3 4; p=$picked; pick 1 2 4; m=$picked; v=1
    [ $((p * t * d)) -le 8 ] || d=1
    pick 1f1b interleaved zero-bubble zbv; kind=$picked
    [ $kind != interleaved ] || { pick 1 2 3; v=$picked; }
    [ $kind != zbv ] || v=2
    group=; [ $kind != interleaved ] || { pick 0 1 2 3 5; group=parallel.micro_batch_group=$picked; }
    pick true false; sequence=$picked; [ $t = 2 ] || sequence=false
    pick none selective full; recompute=$picked; pick fp32 fp32 bf16; recipe=$picked; pick false false true; debug=$picked
    name=$(printf '%02d' $i)-$kind-p$p-v$v-t$t-d$d-m$m-$recipe-$recompute$([ $tied = false ] || echo -tied)
    dk=$(echo "$pattern" | tr '*-' 'sd')-$tied; deck "$dk" "$pattern" $tied
    set -- train.micro_batch=$((8 / d / m > 0 ? 8 / d / m : 1)) precision.recipe=$recipe memory.recompute=$recompute run.debug=$debug
    mesh="parallel.tensor=$t parallel.data=$d parallel.sequence=$sequence"
    pipe="parallel.pipeline=$p parallel.virtual_stages=$v parallel.schedule=$kind $group"
    [ $((RANDOM % 2)) = 0 ] && { bars "$pattern" $((p * v)); pipe="$pipe parallel.stages=$drawn"; }
    flat=flat-$dk-$t-$d-$sequence-$1-$recipe; one=one-$dk-$recipe
    base "$flat" 0 $((t * d)) "$TMP/$dk.yaml" $mesh "$1" precision.recipe=$recipe || continue
    base "$one" 0 1 "$TMP/$dk.yaml" precision.recipe=$recipe || continue
    go "$name" 0 $((p * t * d)) "$TMP/$dk.yaml" $mesh $pipe "$@" || continue
    if [ $tied = false ]; then said=$(alike "$name" "$flat") || { fail "$name" "$said [$mesh $pipe $*]"; continue; }
    else close "$name" "$flat" 1e-6 1e-5 1e-4 || [ $recipe = bf16 ] || { fail "$name" "off the mesh without stages [$mesh $pipe $*]"; continue; }; fi
    bounds="1e-6 2e-5 1e-3"; [ $recipe = fp32 ] || bounds="2e-3 3e-2 2e-2"
    close "$name" "$one" $bounds || { fail "$name" "off one rank: $(exact "$TMP/$name" | head -n 1) against $(exact "$TMP/$one" | head -n 1)"; continue; }
    said=$(peaks "$name" $((p * t * d)) "$TMP/$dk.yaml" $mesh $pipe "$@") || { fail "$name" "plan: $said"; continue; }
    ok "$name"
    rm -rf "${TMP:?}/$name"
done

# Logits, loss and every gradient of the first step, on folders that another program wrote: one rank's bits, and the reference.
printf 'run:\n  mode: compare\n' >"$TMP/compare.yaml"
for c in dense latent moe_group tiny_T full12; do
    [ -z "$SHORT" ] || [ $c = dense ] || continue
    f=tests/reference/$c
    compare() { n=$1; to=$2; shift 2; go "$to" 0 "$n" "$TMP/compare.yaml" model.from=$f compare.reference=$f/reference.safetensors compare.dump="$TMP/$to.safetensors" "$@"; }
    compare 1 "$c-one" || continue
    for how in "2 1f1b 1" "3 interleaved 2" "4 zero-bubble 1" "2 zbv 2"; do
        set -- $how
        compare "$1" "$c-$2" parallel.pipeline="$1" parallel.schedule="$2" parallel.virtual_stages="$3" || continue
        if cmp -s "$TMP/$c-$2.safetensors" "$TMP/$c-one.safetensors" || "$TENSORS" same "$TMP/$c-$2.safetensors" "$TMP/$c-one.safetensors" >/dev/null 2>&1; then ok "gradients-$c-$2"
        else fail "gradients-$c-$2" "$("$TENSORS" same "$TMP/$c-$2.safetensors" "$TMP/$c-one.safetensors" 2>&1 | head -n 2)"; fi
    done
done

# Any pipeline goes on from any other: saved after 2 of 4 steps on one mesh, finished on another, as if it had not stopped.
deck pairs "M-*EM-E*" false
set -- "$TMP/pairs.yaml" train.steps=4 checkpoint.interval=2 schedule.kind=constant
meshes=("1" "2 parallel.pipeline=2" "4 parallel.pipeline=2 parallel.schedule=zbv parallel.data=2" "4 parallel.pipeline=2 parallel.tensor=2 parallel.virtual_stages=2")
go whole 0 1 "$@"
for pair in "0 1" "1 0" "2 $((RANDOM % 2))" "$((RANDOM % 2)) 3" "3 2"; do
    read -r from to <<<"$pair"; name=resume-$from-$to
    read -r n mesh <<<"${meshes[from]}"
    go "$name" 0 "$n" "$@" train.steps=2 $mesh || continue
    read -r n mesh <<<"${meshes[to]}"
    go "$name" 0 "$n" "$@" $mesh || continue
    if [ $((from + to)) = 1 ]; then [ "$(exact "$TMP/$name")" = "$(exact "$TMP/whole")" ] && ok "$name-exact" || fail "$name-exact" "metrics differ"; continue; fi
    [ "$(exact "$TMP/$name" | wc -l)" = 4 ] && near "$(metric "$TMP/$name" 4 loss)" "$(metric "$TMP/whole" 4 loss)" 1e-4 && ok "$name" || fail "$name" "$(metric "$TMP/$name" 4 loss), want $(metric "$TMP/whole" 4 loss)"
done

# Evaluation, initial weights.
go start 0 1 "$TMP/pairs.yaml" train.steps=0
go start3 0 3 "$TMP/pairs.yaml" train.steps=0 parallel.pipeline=3 parallel.virtual_stages=2 &&
    { "$TENSORS" same "$TMP/start/checkpoints/step-00000000" "$TMP/start3/checkpoints/step-00000000" >/dev/null 2>&1 && ok initial-weights || fail initial-weights differ; }
printf 'run:\n  mode: evaluate\nmodel:\n  from: %s\ntrain:\n  sequence_length: 31\nevaluate:\n  samples: 13\n' "$TMP/start" >"$TMP/evaluate.yaml"
go evaluated 0 1 "$TMP/evaluate.yaml" && go evaluated4 0 4 "$TMP/evaluate.yaml" parallel.pipeline=4 parallel.schedule=zbv train.global_batch=4 &&
    { cmp -s "$TMP/evaluated/evaluation.json" "$TMP/evaluated4/evaluation.json" && ok evaluate || fail evaluate "$(cat "$TMP"/evaluated*/evaluation.json)"; }

# Rewriting a folder, and a picture of a step: a span for each forward of each rank, whatever the number of steps.
printf 'run:\n  mode: convert\nmodel:\n  from: %s\nconvert:\n  what: weights\n' "$TMP/start/checkpoints/step-00000000" >"$TMP/convert.yaml"
go converted 0 3 "$TMP/convert.yaml" parallel.pipeline=3 convert.to="$TMP/converted.hf" &&
    { "$TENSORS" same "$TMP/start/checkpoints/step-00000000" "$TMP/converted.hf" >/dev/null 2>&1 && ok convert || fail convert differs; }
go traced 0 2 "$TMP/pairs.yaml" parallel.pipeline=2 parallel.schedule=zbv checkpoint.interval=0 'log.trace_steps=[2, 3]' &&
    { got=$(grep -c '"name": "forward"' "$TMP/traced/trace.json"); [ "$got" = 64 ] && grep -q '"group": "stage 0 to 1"' "$TMP/traced/trace.json" && ok trace || fail trace "$got forwards, want 2 steps x 8 micro-batches x 4 stages"; }

# Each message is one arrow, from its send to the end of its receive, on another rank and later.
arrows() {
    awk 'function word(key, r) { match($0, "\"" key "\": \"?[^,\"}]*"); r = substr($0, RSTART, RLENGTH); sub(/.*: "?/, "", r); return r }
        /"ph": "[sf]"/ { k = word("ph") word("id"); bad += k in at; at[k] = word("ts") + 0; who[k] = word("tid"); n[word("ph")]++ }
        /"name": "send / { sends++ }
        END { for (k in at) { f = "f" substr(k, 2); if (k ~ /^s/ && (!(f in at) || at[f] < at[k] || who[f] == who[k])) bad++ }
              if (!sends || n["s"] != sends || n["f"] != sends || bad) { print sends " sends, " n["s"] " and " n["f"] " ends of arrows, " bad " wrong"; exit 1 } }' \
        "$TMP/$1/trace.json" >"$TMP/arrows" && ok "$1-arrows" || fail "$1-arrows" "$(cat "$TMP/arrows")"
}
arrows traced
# also where a step is computed again to say where its numbers are not finite
go diagnosed 0 2 "$TMP/pairs.yaml" parallel.pipeline=2 checkpoint.interval=0 optimizer.learning_rate=100 optimizer.weight_decay=100 model.initializer_range=10 train.clip=0 train.on_nonfinite=skip 'log.trace_steps=[2, 3]' &&
    { grep -q 'gradient norm is not finite' "$TMP/diagnosed.log" && arrows diagnosed || fail diagnosed "all numbers are finite"; }

# A rank that is killed ends all within seconds, and the next start names it and what it did.
mpi 4 "$MESTAR" "$TMP/pairs.yaml" train.steps=100000 parallel.pipeline=4 train.sequence_length=97 checkpoint.interval=0 run.output="$TMP/killed" >"$TMP/killed.log" 2>&1 </dev/null &
pid=$!
for _ in $(seq 200); do [ "$(cat "$TMP/killed/metrics.jsonl" 2>/dev/null | wc -l)" -ge 2 ] && break; sleep 0.1; done
victim=$(pgrep -f "run.output=$TMP/killed( |\$)" | tail -n 1)
kill -9 "$victim"; began=$(date +%s)
wait $pid
[ $(($(date +%s) - began)) -le 10 ] && ok killed-ends || fail killed-ends "after $(($(date +%s) - began)) s"
go killed 0 1 "$TMP/pairs.yaml" train.steps=1 checkpoint.interval=0 checkpoint.resume=never
grep -q -E "rank [0-3] \(pid $victim .*(chunk 0, micro-batch|update|data)" "$TMP/killed.log" && ok killed-named || fail killed-named "$(grep -A2 NOTE "$TMP/killed.log" | tr '\n' '|')"

# Deep, and on 64 ranks.
if [ -n "$LONG" ]; then
    deck deep "M-*-M-*EM-*-M-*EM-*-M-*EM-*-M-*E" false
    go deep1 0 1 "$TMP/deep.yaml" train.global_batch=16
    go deep16 0 16 "$TMP/deep.yaml" parallel.pipeline=16 parallel.virtual_stages=2 train.global_batch=16 && { said=$(alike deep16 deep1) && ok deep16 || fail deep16 "$said"; }
    go mesh64 0 64 "$TMP/deep.yaml" parallel.pipeline=8 parallel.virtual_stages=2 parallel.tensor=2 parallel.data=4 train.global_batch=16 &&
        { close mesh64 deep1 1e-6 2e-5 1e-3 && ok mesh64 || fail mesh64 "$(exact "$TMP/mesh64" | head -n 1)"; }
fi
finish
