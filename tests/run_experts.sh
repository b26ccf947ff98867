#!/bin/bash
# Experts on several ranks are another way to do the same computation. Meshes are drawn over expert x expert-tensor x tensor x data x
# context x pipeline, with latent experts and without, losses of the router, capacity, recomputing, schedules, packed documents, bf16. Against one
# rank losses, norms and every gradient of the first step agree to rounding, and loads are the same; with forced balance planned memory
# is measured memory, and the bytes that travel are those of the algorithm. LONG=1: 30 meshes. SEED, DRAWS.
. tests/lib.sh
begin
draws=${DRAWS:-9}; [ -z "$LONG" ] || draws=${DRAWS:-30}; [ -z "$SHORT" ] || draws=3
RANDOM=${SEED:-5}
set -f # patterns are full of stars
pick() { shift $((RANDOM % $#)); picked=$1; }

# deck NAME PATTERN LATENT EXPERTS CHOSEN LENGTH
deck() {
    { model "$2" | sed -E "s/n_routed_experts: .*/n_routed_experts: $4/; s/num_experts_per_tok: .*/num_experts_per_tok: $5/"
      echo "  moe_latent_size: $3"
      printf 'train:\n  steps: 3\n  global_batch: 8\n  sequence_length: %s\noptimizer:\n  learning_rate: 0.003\n' "$6"
      printf 'checkpoint:\n  interval: 1\nschedule:\n  kind: constant\n'; } >"$TMP/$1.yaml"
}

# close A B LOSS NORM LATER: first loss, norm, last loss; the router's losses and loads of the first step
close() {
    near "$(metric "$TMP/$1" 1 loss)" "$(metric "$TMP/$2" 1 loss)" "$3" && near "$(metric "$TMP/$1" 1 grad_norm)" "$(metric "$TMP/$2" 1 grad_norm)" "$4" &&
        near "$(metric "$TMP/$1" 3 loss)" "$(metric "$TMP/$2" 3 loss)" "$5" || return 1
    for key in loss_balance loss_z; do
        grep -q "$key" "$TMP/$2/metrics.jsonl" || continue
        near "$(metric "$TMP/$1" 1 $key)" "$(metric "$TMP/$2" 1 $key)" "$3" || return 1
    done
    [ "$3" != 1e-6 ] || [ "$(sed -n '1s/.*"loads": //p' "$TMP/$1/metrics.jsonl")" = "$(sed -n '1s/.*"loads": //p' "$TMP/$2/metrics.jsonl")" ]
}
said() { head -n 1 "$TMP/$1/metrics.jsonl" | cut -c1-160; }

# peaks NAME N deck overrides...: memory and bytes by group that were planned and measured, on every rank
peaks() {
    peaks_name=$1; peaks_n=$2; shift 2
    go "$peaks_name-plan" 0 1 plan "$@" --json run.ranks="$peaks_n" || return 1
    planned=$(grep -o '"arena_bytes": *[0-9]*' "$TMP/$peaks_name-plan.log" | sed 's/.*: *//' | tr '\n' ' ')
    measured=$(sed -n '/^peak_bytes:/,/^[a-z_]*:/p' "$TMP/$peaks_name/summary.yaml" | sed -e '1s/^peak_bytes://' -e '/^[a-z_]*:/d' | tr -c '0-9\n' ' ' | tr -s ' \n' ' ' | sed 's/^ //')
    [ "$planned" = "$measured" ] || { echo "planned '$planned', measured '$measured'"; return 1; }
    steps=$(sed -n 's/.*"step": \({.*}}\)}.*/\1/p' "$TMP/$peaks_name-plan.log"); did=$(sed -n '/^step:/,/^[a-z]/s/^  - //p' "$TMP/$peaks_name/summary.yaml")
    [ -n "$steps" ] && [ "$steps" = "$did" ] || { echo "planned steps '$(echo "$steps" | head -n 1)', did '$(echo "$did" | head -n 1)'"; return 1; }
}

i=0
while [ $i -lt "$draws" ]; do
    i=$((i + 1))
    pick 0 13; latent=$picked; pick "ME*-E" "E*" "MEM-*E"; pattern=$picked
    pick 1 2 2 4; t=$picked; pick 1 2 4; d=$picked; pick 1 1 2; p=$picked
    pick 1 1 2; c=$picked
    while [ $((t * d * p * c)) -gt 8 ]; do d=1; [ $((t * d * p * c)) -le 8 ] || p=1; done
    stage=$((t * d * c))
    # factors of the stage
    all=; for e in 1 2 4 8 2 4 8; do for y in 1 2 4 1; do [ $((stage % (e * y))) != 0 ] || [ $((e * y)) = 1 -a $t = 1 ] || all="$all $e:$y"; done; done
    [ -n "$all" ] || { i=$((i - 1)); continue; }
    pick $all; e=${picked%:*} y=${picked#*:}
    pick 8 16; experts=$picked; pick 1 2 3; chosen=$picked
    pick 29 16 13 64; length=$picked; pick 1 2; micro=$picked; [ $((8 % (micro * d))) = 0 ] || micro=1
    pick true false; sequence=$picked; [ $t -gt 1 ] || sequence=false
    pick none none full selective; recompute=$picked; pick fp32 fp32 fp32 bf16; recipe=$picked; pick false false true; debug=$picked
    pick none bias forced forced; balance=$picked; pick sequence sequence batch global; kind=$picked; pick 0 0.1; aux=$picked; pick 0 0.05; z=$picked; pick 0 0 1.25; capacity=$picked
    [ $c = 1 ] || length=$((length / 4 * 4))
    one=$micro; [ $kind != sequence ] || { pick 1 2 4; one=$picked; } # whose documents are computed together changes nothing
    [ $kind != global ] || [ $d = 1 ] || one=8 micro=$((8 / d))       # all at once on all data ranks, as on one
    schedule=1f1b; [ $p = 1 ] || { pick 1f1b zero-bubble zbv; schedule=$picked; }
    name=$(printf '%02d' $i)-e$e-y$y-t$t-d$d-c$c-p$p-$balance-$recompute-$recipe$([ $latent = 0 ] || echo -latent)$([ $aux = 0 ] || echo -$kind)$([ $capacity = 0 ] || echo -capacity)
    deck d$i "$pattern" $latent $experts $chosen $length
    same="precision.recipe=$recipe moe.balance=$balance moe.aux_kind=$kind moe.aux_coefficient=$aux moe.z_coefficient=$z moe.capacity=$capacity log.loads=true"
    how="train.micro_batch=$micro parallel.tensor=$t parallel.data=$d parallel.context=$c parallel.pipeline=$p parallel.schedule=$schedule parallel.sequence=$sequence parallel.expert=$e parallel.expert_tensor=$y memory.recompute=$recompute run.debug=$debug"
    go one-d$i 0 1 "$TMP/d$i.yaml" $same train.micro_batch=$one || continue
    go "$name" 0 $((t * d * p * c)) "$TMP/d$i.yaml" $same $how || continue
    bounds="1e-6 2e-5 1e-4"; [ $recipe = fp32 ] || bounds="3e-3 3e-2 2e-2"
    close "$name" one-d$i $bounds || { fail "$name" "off one rank: $(said "$name") against $(said one-d$i) [$same $how]"; continue; }
    if [ $recipe = fp32 ]; then
        "$TENSORS" ending "$TMP/$name/checkpoints/step-00000001/resume" "$TMP/one-d$i/checkpoints/step-00000001/resume" .moment1 1e-3 >"$TMP/moments" || { fail "$name" "gradients: $(cat "$TMP/moments") [$same $how]"; continue; }
    fi
    if [ $balance = forced ] && [ $debug = false ]; then
        why=$(peaks "$name" $((t * d * p * c)) "$TMP/d$i.yaml" $same $how) || { fail "$name" "plan: $why [$same $how]"; continue; }
    fi
    ok "$name"
    rm -rf "${TMP:?}/$name" "${TMP:?}/one-d$i"
done

# Logits, loss and every gradient as another program has them.
printf 'run:\n  mode: compare\n' >"$TMP/compare.yaml"
for c in latent moe_group moe_nano; do
    f=tests/reference/$c; experts=$(number $f/config.json n_routed_experts)
    for how in "2 parallel.expert=2" "4 parallel.expert=4" "4 parallel.tensor=2 parallel.expert=2 parallel.expert_tensor=2" "4 parallel.tensor=2 parallel.sequence=true parallel.expert=4"; do
        set -- $how; n=$1; shift
        e=$(echo "$*" | sed -E 's/.*expert=([0-9]*).*/\1/'); t=1; case $* in *tensor=2\ par*) t=2 ;; esac
        [ $((experts % e)) = 0 ] && legal $f $t || continue
        name=compare-$c-$n-$(echo "$*" | tr -dc '0-9')
        go "$name" 0 "$n" "$TMP/compare.yaml" model.from=$f compare.reference=$f/reference.safetensors "$@" && ok "$name"
    done
done

# What travels, by the algorithm: with N experts on N ranks and rows that divide, of a rank's R = tokens x chosen / tensor rows (N-1)/N
# go to others, and the results of as many are sent back: two ways forward, two backward, two more where forward is computed twice; and
# once 4 bytes tell the number of rows for each expert of another rank. Latent experts send the latent.
{ model "EE"; printf 'train:\n  steps: 2\n  micro_batch: 2\n  sequence_length: 16\ncheckpoint:\n  interval: 0\nmoe:\n  balance: forced\n'; } >"$TMP/traffic.yaml"
echo "mesh                       group            bytes     by the algorithm"
traffic() { # NAME RANKS ROWS WIDTH EXPERT HELD PARTS WAYS overrides...
    name=traffic-$1 n=$2 rows=$3 width=$4 e=$5 held=$6 parts=$7 ways=$8; shift 8
    go "$name" 0 "$n" "$TMP/traffic.yaml" "$@" || return
    line=$(sed -n '/^step:/,/^[a-z]/s/^  - //p' "$TMP/$name/summary.yaml" | head -n 1)
    for g in expert expert_tensor; do
        got=$(echo "$line" | grep -o "\"$g\": [0-9]*" | sed 's/.*: //'); got=${got:-0}
        if [ $g = expert ]; then want=$((2 * (ways * rows * (e - 1) / e * width * 4 + (e - 1) * held * 4)))
        else want=$((2 * (parts - 1) * (ways * rows * width * 4 + e * held * 4))); fi # gathered and summed, each way
        printf '%-26s %-14s %9s %9s\n' "$name" $g "$got" "$want"
        [ "$got" = "$want" ] && ok "$name-$g" || fail "$name-$g" "$got bytes, want $want"
    done
}
traffic e4 4 64 32 4 2 1 4 parallel.expert=4
traffic e4-latent 4 64 12 4 2 1 4 parallel.expert=4 model.moe_latent_size=12
traffic t2-e4 4 32 32 4 2 1 4 parallel.tensor=2 parallel.expert=4
traffic t2-e2-y2 4 32 32 2 4 2 4 parallel.tensor=2 parallel.expert=2 parallel.expert_tensor=2
traffic e2-recomputed 2 64 32 2 4 1 6 parallel.expert=2 memory.recompute=full

# Any mesh of experts goes on from any other.
deck pairs "ME*E" 13 8 2 29
set -- "$TMP/pairs.yaml" train.steps=4 checkpoint.interval=2 moe.balance=bias
meshes=("1" "4 parallel.expert=4" "4 parallel.tensor=2 parallel.expert=2 parallel.expert_tensor=2" "4 parallel.pipeline=2 parallel.expert=2")
go whole 0 1 "$@"
for pair in "0 1" "1 2" "2 3" "3 0" "1 1"; do
    read -r from to <<<"$pair"; name=resume-$from-$to
    read -r n mesh <<<"${meshes[from]}"; go "$name" 0 "$n" "$@" train.steps=2 $mesh || continue
    read -r n mesh <<<"${meshes[to]}"; go "$name" 0 "$n" "$@" $mesh || continue
    [ "$(exact "$TMP/$name" | wc -l)" = 4 ] && near "$(metric "$TMP/$name" 4 loss)" "$(metric "$TMP/whole" 4 loss)" 1e-4 && ok "$name" || fail "$name" "$(metric "$TMP/$name" 4 loss), want $(metric "$TMP/whole" 4 loss)"
done

# Evaluating and generating; what cannot be is refused.
printf 'run:\n  mode: evaluate\nmodel:\n  from: %s\ntrain:\n  sequence_length: 32\nevaluate:\n  samples: 5\n' "$TMP/whole" >"$TMP/evaluate.yaml"
measured() { sed 's/.*"loss": \([^,]*\), .*"tokens": \(.*\)}/\1 \2/' "$TMP/$1/evaluation.json"; }
go evaluated 0 1 "$TMP/evaluate.yaml"
for how in "4 parallel.expert=4 parallel.tensor=2 train.global_batch=2" "4 parallel.expert=4 parallel.context=2 train.global_batch=2" "3 parallel.expert_tensor=3 train.global_batch=3" \
    "8 parallel.expert=2 parallel.context=4 parallel.tensor=2 parallel.expert_tensor=2 parallel.sequence=true" "8 parallel.expert=4 parallel.context=2 parallel.pipeline=2 train.global_batch=4"; do
    name=evaluated-$(printf %s "$how" | tr -c 'a-z0-9\n' _)
    go "$name" 0 "${how%% *}" "$TMP/evaluate.yaml" ${how#* } || continue
    set -- $(measured evaluated) $(measured "$name")
    near "$3" "$1" 1e-6 && [ "$4" = "$2" ] && ok "$name" || fail "$name" "loss and tokens $3 $4, want $1 $2"
done
printf 'run:\n  mode: generate\nmodel:\n  from: %s\ngenerate:\n  prompt_ids: [1, 2, 3, 4, 5]\n  max_new_tokens: 9\n' "$TMP/whole" >"$TMP/generate.yaml"
go generated 0 1 "$TMP/generate.yaml" && go generated2 0 2 "$TMP/generate.yaml" parallel.expert=2 parallel.tensor=2 &&
    { cmp -s "$TMP/generated/generations.jsonl" "$TMP/generated2/generations.jsonl" && ok generate || fail generate "$(cat "$TMP"/generated*/generations.jsonl)"; }
go generated4 0 4 "$TMP/generate.yaml" parallel.expert=4 &&
    { cmp -s "$TMP/generated/generations.jsonl" "$TMP/generated4/generations.jsonl" && ok generate-apart || fail generate-apart "$(cat "$TMP"/generated*/generations.jsonl)"; }
refused() { name=$1 words=$2; shift 2; go "$name" 2 "$@" && { grep -q "$words" "$TMP/$name.log" && ok "$name" || fail "$name" "$(cat "$TMP/$name.log")"; }; }
refused refused-multiple "are no multiple" 3 "$TMP/pairs.yaml" parallel.expert=3 train.global_batch=3
refused refused-ranks "does not divide the 2 ranks" 2 "$TMP/pairs.yaml" parallel.expert=4

# A small Super on 64 ranks, and on 32 along all axes.
if [ -z "$SHORT" ]; then
    cat >"$TMP/super.yaml" <<YAML
model:
  preset: super-120b
  hybrid_override_pattern: "ME*E"
  num_nextn_predict_layers: 0
  hidden_size: 64
  vocab_size: 101
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 8
  mamba_num_heads: 8
  mamba_head_dim: 8
  n_groups: 4
  ssm_state_size: 8
  moe_intermediate_size: 24
  moe_shared_expert_intermediate_size: 48
  moe_latent_size: 16
train:
  steps: 3
  global_batch: 16
  sequence_length: 24
checkpoint:
  interval: 0
YAML
    go super1 0 1 "$TMP/super.yaml" train.micro_batch=16
    # many RANKS overrides...: three steps within 90 seconds, and the losses of one rank
    many() {
        local n=$1 name=super$1 began took; shift
        began=$(date +%s)
        go "$name" 0 "$n" "$TMP/super.yaml" "$@" && took=$(($(date +%s) - began)) && { close "$name" super1 1e-6 2e-5 1e-4 && [ "$took" -le 90 ] &&
            ok "super on $n ranks, $took s" || fail "$name" "$took s, $(said "$name") against $(said super1)"; }
    }
    many 64 parallel.tensor=4 parallel.expert=64
    many 32 parallel.context=4 parallel.tensor=2 parallel.pipeline=2 parallel.expert=8
fi
finish
