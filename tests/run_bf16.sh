#!/bin/bash
# The recipe bf16: it learns as fp32 does; what must change no bit changes none; masters keep what bf16 cannot hold; the plan is what is
# measured; and the folders that transformers wrote give its answers within the rounding of bf16.
. tests/lib.sh
begin
rest='
train:
  steps: 60
  global_batch: 4
  sequence_length: 37
optimizer:
  learning_rate: 0.003
schedule:
  kind: constant
precision:
  recipe: bf16
moe:
  balance: bias
'
{ model "M*-E"; echo "  moe_latent_size: 12"; echo "$rest"; } >"$TMP/base.yaml"
deck=$TMP/base.yaml
brief="train.steps=12"
final=checkpoints/step-00000012/model.safetensors
wait_for() { for _ in $(seq 300); do [ "$(cat "$1" 2>/dev/null | wc -l)" -ge "$2" ] && return; sleep 0.1; done; }

# same NAME REFERENCE: every metric and the saved weights, bit for bit
same() {
    if [ "$(exact "$TMP/$1")" != "$(exact "$TMP/$2")" ]; then fail "$1" "metrics: $(diff <(exact "$TMP/$1") <(exact "$TMP/$2") | head -n 4 | tr '\n' ' ')"
    elif ! cmp -s "$TMP/$1/$final" "$TMP/$2/$final"; then fail "$1" "weights differ"
    else ok "$1"; fi
}
# close NAME REFERENCE BOUND: the losses of all steps, relative
losses() { sed -E 's/.*"loss": *([^,}]*).*/\1/' "$TMP/$1/metrics.jsonl"; }
close() {
    worst=$(paste <(losses "$1") <(losses "$2") | awk '{ d = $1 - $2; if (d < 0) d = -d; d /= $2; if (!(d <= w)) w = d } END { print w, NR }')
    awk -v w="$worst" -v b="$3" 'BEGIN { split(w, x); exit !(x[1] <= b && x[2] == 60) }' && ok "$1 (losses within ${worst% *})" ||
        fail "$1" "losses differ by (relative, steps) $worst, want at most $3"
}

go base 0 1 "$deck" run.threads=1 || finish
go fp32 0 1 "$deck" run.threads=1 precision.recipe=fp32 && close base fp32 0.03
first=$(metric "$TMP/base" 1 loss) last=$(metric "$TMP/base" '$' loss)
awk -v a="$first" -v b="$last" 'BEGIN { exit !(a > 4 && a < 6 && b < a - 0.3) }' && ok learns || fail learns "loss from $first to $last"

# ---- what must change no bit
go brief 0 1 "$deck" $brief run.threads=1
go threads2 0 1 "$deck" $brief run.threads=2 && same threads2 brief
go recompute 0 1 "$deck" $brief run.threads=1 memory.recompute=full && same recompute brief
go debug 0 1 "$deck" $brief run.threads=2 run.debug=true && same debug brief
go debug-recompute 0 1 "$deck" $brief run.threads=1 run.debug=true memory.recompute=full && same debug-recompute brief
go used 0 1 "$TMP/brief/used.yaml" && same used brief
go stopped 0 1 "$deck" run.threads=1 train.steps=5 && go stopped 0 1 "$deck" $brief run.threads=1 && same stopped brief
"$MESTAR" "$deck" $brief run.threads=1 checkpoint.interval=2 run.output="$TMP/killed" >"$TMP/killed.log" 2>&1 </dev/null &
pid=$!
wait_for "$TMP/killed/metrics.jsonl" 5
kill -9 $pid 2>/dev/null; wait $pid 2>/dev/null
go killed 0 1 "$deck" $brief run.threads=1 checkpoint.interval=2 && same killed brief
go mesh-brief 0 4 "$deck" $brief parallel.tensor=2 parallel.sequence=true &&
    go mesh-debug 0 4 "$deck" $brief parallel.tensor=2 parallel.sequence=true memory.recompute=full run.debug=true && same mesh-debug mesh-brief

# ---- what changes rounding only
go mesh 0 4 "$deck" parallel.tensor=2 parallel.sequence=true && close mesh base 0.03
go data2 0 2 "$deck" parallel.data=2 && close data2 base 0.03
go tensor2 0 2 "$deck" parallel.tensor=2 && close tensor2 base 0.03
go sequence4 0 4 "$deck" parallel.tensor=4 parallel.sequence=true && close sequence4 base 0.03

# ---- masters: an update far smaller than a step of bf16 counts, and what is not updated keeps every bit of its file
for c in dense stored_bf16; do
    for freeze in "[]" "['backbone.layers.*.weight']"; do
        name=kept-$c-$(printf %s "$freeze" | tr -dc 'a-z')
        printf 'model:\n  from: tests/reference/%s\n' "$c" >"$TMP/kept.yaml"
        go "$name" 0 1 "$TMP/kept.yaml" train.steps=3 train.sequence_length=16 optimizer.learning_rate=0 precision.recipe=bf16 "train.freeze=$freeze" || continue
        if said=$("$TENSORS" same "tests/reference/$c/model.safetensors" "$TMP/$name/checkpoints/step-00000003/model.safetensors" 2>&1); then ok "$name"; else fail "$name" "$(printf %s "$said" | head -n 3 | tr '\n' ' ')"; fi
    done
done
others="train.freeze=['*norm*', '*conv1d*', '*A_log', '*.D', '*dt_bias']"
printf '{}\n' >"$TMP/empty.yaml"
go small 0 1 "$TMP/empty.yaml" model.from=tests/reference/dense train.sequence_length=16 train.steps=8 schedule.kind=constant \
    optimizer.learning_rate=1e-7 optimizer.weight_decay=0 precision.recipe=bf16 "$others" &&
    { said=$("$TENSORS" same tests/reference/dense/model.safetensors "$TMP/small/checkpoints/step-00000008/model.safetensors" 2>&1)
      [ "$(printf '%s\n' "$said" | grep -c 'weight: numbers')" -ge 3 ] && ok small-updates || fail small-updates "they are lost: $said"; }
go converted 0 1 "$TMP/empty.yaml" run.mode=convert model.from=tests/reference/dense convert.to="$TMP/copy" precision.recipe=bf16 &&
    { "$TENSORS" same tests/reference/dense/model.safetensors "$TMP/copy/model.safetensors" >/dev/null 2>&1 && ok convert-exact || fail convert-exact "a recipe rounds what is only copied"; }

# ---- numbers that are not finite are found in bf16 tensors too
go blown 4 1 "$deck" optimizer.learning_rate=100 optimizer.weight_decay=100 train.clip=0 run.debug=true &&
    { grep -q -E "not finite: (layer|the weight|the gradient|the embedding)" "$TMP/blown.log" && ok diagnosed || fail diagnosed "$(tail -n 3 "$TMP/blown.log")"; }

# ---- memory: planned and measured, to the byte; without updates there is no fp32 copy of the products' weights
numbers() { tr -c '0-9\n' ' ' | tr -s ' \n' ' ' | sed 's/^ //; s/ $//'; }
planned() {
    name=plan-$1; n=$2; shift 2
    go "$name-dry" 0 1 plan "$@" --json run.ranks="$n" || return
    want=$(tr -d '\n' <"$TMP/$name-dry.log" | grep -o '"arena_bytes": *[0-9]*' | sed 's/.*: *//' | numbers)
    go "$name" 0 "$n" "$@" || return
    got=$(sed -n '/^peak_bytes:/,/^[a-z_]*:/p' "$TMP/$name/summary.yaml" | sed -e '1s/^peak_bytes://' -e '/^[a-z_]*:/d' | numbers)
    if [ -n "$want" ] && [ "$want" = "$got" ]; then ok "$name"; else fail "$name" "planned '$want', measured '$got'"; fi
}
planned one 1 "$deck" train.steps=2
planned mesh 4 "$deck" train.steps=2 parallel.tensor=2 parallel.sequence=true memory.recompute=full
planned frozen 1 "$TMP/empty.yaml" model.from=tests/reference/stored_bf16 train.steps=1 train.sequence_length=16 precision.recipe=bf16 "train.freeze=['backbone.layers.*.weight']"
ask="run.mode=generate model.from=tests/reference/latent generate.prompts=tests/reference/latent/greedy.jsonl generate.max_new_tokens=16"
planned generate 1 "$TMP/empty.yaml" $ask precision.recipe=bf16
bytes() { tr -d '\n' <"$TMP/$1.log" | sed -E "s/.*\"$2\": *([0-9]+).*/\1/"; }
go plan32 0 1 plan "$TMP/empty.yaml" $ask --json &&
    { a=$(bytes plan-generate-dry parameters_bytes); b=$(bytes plan32 parameters_bytes)
      awk -v a="$a" -v b="$b" 'BEGIN { exit !(a > 0 && a < 0.65 * b) }' && ok weights-halved || fail weights-halved "$a of $b bytes"; }

# ---- generation: the same tokens however the prompts are cut
new_ids() { sed -E 's/.*"ids": (\[[^]]*\]), "text": .*/\1/' "$1/generations.jsonl"; }
go generate-debug 0 1 "$TMP/empty.yaml" $ask precision.recipe=bf16 run.debug=true &&
    { [ -n "$(new_ids "$TMP/plan-generate")" ] && [ "$(new_ids "$TMP/generate-debug")" = "$(new_ids "$TMP/plan-generate")" ] && ok generate-debug || fail generate-debug "other tokens"; }

# ---- transformers' fp32 answers: within the rounding where no expert is chosen, on the average where one is
# near CASE N TOLERANCE override...
against() {
    c=$1; n=$2; tolerance=$3; shift 3
    name=$c-$n; f=tests/reference/$c
    go "$name" 0 "$n" "$TMP/empty.yaml" run.mode=compare "model.from=$f" "compare.reference=$f/reference.safetensors" precision.recipe=bf16 \
        "compare.tolerance=$tolerance" "$@" && ok "against-$name"
}
for c in dense dt_free dt_limit full12 gqa groups3 mamba_only short_conv; do against $c 1 "[0.05, 0.003, 0.5]" run.debug=true; done
against dense 2 "[0.05, 0.003, 0.5]" parallel.tensor=2 parallel.sequence=true
for c in latent moe_group moe_nano moe_nonorm biases; do against $c 1 "[1, 0.02, 100]"; done
finish
