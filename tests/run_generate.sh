#!/bin/bash
# Continuing prompts: greedily it gives the tokens of transformers; and neither mesh, batch, chunks nor company changes what follows a
# prompt. What is shown, written and planned is what happened.
. tests/lib.sh
begin
cat >"$TMP/generate.yaml" <<'YAML'
run:
  mode: generate
generate:
  max_new_tokens: 16
YAML
deck=$TMP/generate.yaml

numbers() { tr -c '0-9\n' ' ' | tr -s ' \n' ' ' | sed 's/^ //; s/ $//'; }
new_ids() { sed -E 's/.*"ids": (\[[^]]*\]), "text": .*/\1/' "$1/generations.jsonl"; }
tokens() { sed -E 's/.*"tokens": (\[[^]]*\]).*/\1/' "$1"; }
ends() { sed -E 's/.*"stop": "([^"]*)".*/\1/' "$1/generations.jsonl" | tr '\n' ' '; }
# is NAME GOT WANT
is() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "got $(printf %s "$2" | head -c 300), want $(printf %s "$3" | head -c 300)"; fi; }

# ranks of a pipeline and along context among these overrides: $p
pipeline_of() { p=1; for a; do case $a in parallel.pipeline=* | parallel.context=*) p=$((p * ${a#*=})) ;; esac; done; }

# ---- the tokens of transformers, on every mesh
# try CASE TENSOR DATA override...
try() {
    c=$1; t=$2; d=$3; shift 3
    name=$c-t$t-d$d$(printf %s "$*" | tr -c 'a-z0-9\n' _); f=tests/reference/$c
    pipeline_of "$@"
    go "$name" 0 $((t * d * p)) "$deck" "model.from=$f" "generate.prompts=$f/greedy.jsonl" parallel.tensor="$t" parallel.data="$d" "$@" || return
    is "$name" "$(new_ids "$TMP/$name")" "$(tokens "$f/greedy.jsonl")"
}
for f in tests/reference/*/greedy.jsonl; do
    c=$(basename "$(dirname "$f")")
    try "$c" 1 1 run.debug=true
    try "$c" 1 1 generate.batch=1
    try "$c" 1 1 parallel.pipeline=2 generate.prefill_chunk=3
    [ -n "$SHORT" ] || try "$c" 1 2 parallel.pipeline=2 parallel.schedule=zbv run.debug=true
    [ -z "$LONG" ] || try "$c" 1 1 parallel.pipeline=5 parallel.virtual_stages=2 generate.batch=2
    try "$c" 1 1 parallel.context=2 generate.prefill_chunk=5
    [ -n "$SHORT" ] || try "$c" 1 1 parallel.context=3 generate.batch=2 run.debug=true
    [ -z "$LONG" ] || try "$c" 1 2 parallel.context=4 parallel.pipeline=2 generate.prefill_chunk=8
    for t in 2 3 4; do
        legal "tests/reference/$c" $t || continue
        try "$c" $t 1 generate.prefill_chunk=3
        [ -n "$SHORT" ] || try "$c" $t 1 parallel.sequence=true run.debug=true
        [ -z "$LONG" ] || try "$c" $t 2 generate.batch=1
        [ -z "$LONG" ] || try "$c" $t 1 parallel.context=2 parallel.sequence=true generate.prefill_chunk=7
    done
    [ -n "$SHORT" ] || try "$c" 1 3 generate.batch=2
done
try latent 1 1 precision.recipe=fp64
try latent 2 2 generate.batch=1 generate.prefill_chunk=5
try gqa 4 1 generate.prefill_chunk=1
try groups3 6 1 generate.batch=2
try dense 2 4 generate.batch=1
try dense 2 2 generate.prefill_chunk=2 parallel.pipeline=2 parallel.sequence=true parallel.virtual_stages=2

# ---- sequences on several ranks by heads, and on more ranks than the prompts have tokens
by_heads="parallel.context_attention=heads parallel.context_mamba=heads"
try gqa 1 1 parallel.context=2 $by_heads generate.prefill_chunk=8 run.debug=true
try groups3 1 2 parallel.context=3 $by_heads generate.batch=1
try gqa 2 1 parallel.context=2 $by_heads parallel.sequence=true precision.recipe=fp64
try dense 1 1 parallel.context=12 generate.prefill_chunk=1
try mamba_only 2 1 parallel.context=2 generate.batch=3

# ---- experts on ranks of other prompts, which end at other times: with as many prompts as ranks, fewer, more; one token each, or many
for c in latent moe_nano; do
    try $c 1 2 parallel.expert=2
    try $c 1 3 parallel.expert_tensor=3 generate.batch=1
    try $c 1 8 parallel.expert=4 run.debug=true
    try $c 2 2 parallel.expert=4 parallel.sequence=true generate.prefill_chunk=5 precision.recipe=fp64
    try $c 1 1 parallel.context=2 parallel.expert=2
    try $c 1 2 parallel.context=2 parallel.expert=4 generate.batch=1 generate.prefill_chunk=5
    try $c 1 2 parallel.context=2 parallel.pipeline=2 parallel.expert=2 parallel.expert_tensor=2
    [ -z "$LONG" ] || try $c 2 2 parallel.context=2 parallel.pipeline=2 parallel.expert=4 parallel.expert_tensor=2
done

# ---- long prompts beside short ones, read in many calls: what was read before goes round the ranks in parts
{ model "M*-*M" | sed -E 's/(num_attention_heads|mamba_num_heads|num_key_value_heads|n_groups): .*/\1: 4/; s/head_dim: .*/head_dim: 4/; s/hidden_size: .*/hidden_size: 16/'
  printf '  initializer_range: 0.5\ntrain:\n  steps: 0\n'; } >"$TMP/begin.yaml"
numbered() { awk -v n="$1" 'BEGIN { printf "{\"ids\": [1"; for (i = 1; i < n; i++) printf ", %d", (i * 7919 + int(i / 13)) % 101; print "]}" }'; }
if go begun 0 1 "$TMP/begin.yaml"; then
    { numbered 3001; numbered 7; numbered 1799; } >"$TMP/long.jsonl"
    set -- "$deck" "model.from=$TMP/begun" "generate.prompts=$TMP/long.jsonl" precision.recipe=fp64
    go long1 0 1 "$@" || true
    for how in "2 generate.prefill_chunk=128 parallel.context=2" "3 generate.prefill_chunk=500 parallel.context=3" "4 parallel.tensor=2 parallel.context=2 generate.prefill_chunk=300" \
        "4 parallel.context=4 generate.prefill_chunk=777 $by_heads" "4 parallel.context=2 parallel.data=2"; do
        name=long-$(printf %s "$how" | tr -c 'a-z0-9\n' _)
        go "$name" 0 "${how%% *}" "$@" ${how#* } && is "$name" "$(cat "$TMP/$name/generations.jsonl")" "$(cat "$TMP/long1/generations.jsonl")"
    done
fi
# As long as it says: the same tokens, memory linear in the tokens of a rank and as planned.
if [ -n "$LONG" ]; then
    { model "M-*E" | sed -E 's/(hidden_size|mamba_num_heads): .*/\1: 8/; s/(num_attention_heads|num_key_value_heads|n_groups): .*/\1: 1/; s/head_dim: .*/head_dim: 4/'
      printf '  initializer_range: 0.5\ntrain:\n  steps: 0\n'; } >"$TMP/begin1.yaml"
    go begun1 0 1 "$TMP/begin1.yaml"
    for l in 131072 262144; do
        numbered $l >"$TMP/$l.jsonl"
        for c in 1 2 4; do
            name=long-$l-$c
            set -- "$deck" "model.from=$TMP/begun1" "generate.prompts=$TMP/$l.jsonl" moe.balance=forced parallel.context=$c
            go "$name" 0 $c "$@" && go "$name-dry" 0 1 plan "$@" --json run.ranks=$c || continue
            is "$name-plan" "$(sed -n '/^peak_bytes:/,$p' "$TMP/$name/summary.yaml" | numbers)" "$(grep -o '"arena_bytes": *[0-9]*' "$TMP/$name-dry.log" | sed 's/.*: *//' | numbers)"
            is "$name" "$(new_ids "$TMP/$name")" "$(new_ids "$TMP/long-$l-1")"
            printf '%-16s %s tokens read a second, bytes %s\n' "$name" "$(words "$TMP/$name/summary.yaml" prefill_tokens_per_second)" "$(sed -n '/^peak_bytes:/,$p' "$TMP/$name/summary.yaml" | numbers)"
        done
    done
fi

# ---- drawing: the same tokens in any company, others under another seed
draw="generate.temperature=0.9 generate.top_k=40 generate.top_p=0.95 generate.max_new_tokens=24"
# drawn NAME TENSOR DATA override...
drawn() {
    name=$1; t=$2; d=$3; shift 3
    pipeline_of "$@"
    go "$name" 0 $((t * d * p)) "$deck" model.from=tests/reference/dense generate.prompts=tests/reference/dense/greedy.jsonl $draw \
        parallel.tensor="$t" parallel.data="$d" "$@"
}
if drawn drawn 1 1; then
    drawn drawn-alone 1 1 generate.batch=1 && is drawn-alone "$(new_ids "$TMP/drawn-alone")" "$(new_ids "$TMP/drawn")"
    drawn drawn-chunks 1 1 generate.prefill_chunk=2 run.debug=true && is drawn-chunks "$(new_ids "$TMP/drawn-chunks")" "$(new_ids "$TMP/drawn")"
    drawn drawn-tensor 3 1 generate.batch=3 && is drawn-tensor "$(new_ids "$TMP/drawn-tensor")" "$(new_ids "$TMP/drawn")"
    drawn drawn-mesh 2 2 generate.batch=1 && is drawn-mesh "$(new_ids "$TMP/drawn-mesh")" "$(new_ids "$TMP/drawn")"
    drawn drawn-pipeline 1 2 parallel.pipeline=3 && is drawn-pipeline "$(cat "$TMP/drawn-pipeline/generations.jsonl")" "$(cat "$TMP/drawn/generations.jsonl")"
    drawn drawn-again 1 4 && is drawn-again "$(cat "$TMP/drawn-again/generations.jsonl")" "$(cat "$TMP/drawn/generations.jsonl")"
    drawn drawn-seed 1 1 run.seed=5 &&
        { [ "$(new_ids "$TMP/drawn-seed")" != "$(new_ids "$TMP/drawn")" ] && ok drawn-seed || fail drawn-seed "another seed draws the same"; }
fi
# answers that end at different times, on ranks that share their experts; each ends where it does alone
ended="model.from=tests/reference/latent generate.prompts=tests/reference/latent/greedy.jsonl generate.max_new_tokens=120 run.seed=3"
if drawn ended 1 1 $ended; then
    case $(ends "$TMP/ended") in *eos*) ok ended-early ;; *) fail ended-early "none of the answers ended: $(ends "$TMP/ended")" ;; esac
    drawn ended-apart 1 4 $ended parallel.expert=4 && is ended-apart "$(cat "$TMP/ended-apart/generations.jsonl")" "$(cat "$TMP/ended/generations.jsonl")"
    drawn ended-context 1 2 $ended parallel.expert=4 parallel.context=2 generate.batch=1 generate.prefill_chunk=4 &&
        is ended-context "$(cat "$TMP/ended-context/generations.jsonl")" "$(cat "$TMP/ended/generations.jsonl")"
    go ended-few 0 4 "$deck" $draw $ended 'generate.prompts=' 'generate.prompt_ids=[5, 6]' parallel.data=4 parallel.expert=2 &&
        go ended-one 0 1 "$deck" $draw $ended 'generate.prompts=' 'generate.prompt_ids=[5, 6]' &&
        is ended-few "$(cat "$TMP/ended-few/generations.jsonl")" "$(cat "$TMP/ended-one/generations.jsonl")"
fi
drawn one-of-one 1 1 generate.top_k=1 generate.max_new_tokens=16 &&
    is one-of-one "$(new_ids "$TMP/one-of-one")" "$(tokens tests/reference/dense/greedy.jsonl)"

# ---- ends: a number, a list, and generation_config.json before either; the third token of the first answer is made one
cp -r tests/reference/dense "$TMP/model"
third=$(tokens tests/reference/dense/greedy.jsonl | head -n 1 | sed 's/, /\n/g' | sed -n 3p)
first="generate.prompt_ids=$(sed -n -E '1s/.*"ids": (\[[^]]*\]).*/\1/p' tests/reference/dense/greedy.jsonl)"
want=$(tokens tests/reference/dense/greedy.jsonl | head -n 1 | sed -E 's/^(\[[0-9]+, [0-9]+, [0-9]+).*/\1]/')
sed -i -E "s/\"eos_token_id\": [0-9]+/\"eos_token_id\": $third/" "$TMP/model/config.json"
go end-number 0 1 "$deck" "model.from=$TMP/model" "$first" && is end-number "$(new_ids "$TMP/end-number") $(ends "$TMP/end-number")" "$want eos "
sed -i -E "s/\"eos_token_id\": [0-9]+/\"eos_token_id\": [100, $third]/" "$TMP/model/config.json"
go end-list 0 1 "$deck" "model.from=$TMP/model" "$first" && is end-list "$(new_ids "$TMP/end-list") $(ends "$TMP/end-list")" "$want eos "
echo '{"eos_token_id": 2}' >"$TMP/model/generation_config.json"
go end-other 0 1 "$deck" "model.from=$TMP/model" "$first" && is end-other "$(ends "$TMP/end-other")" "length "

# ---- plan: the memory of every rank, to the byte
# planned NAME N override...
planned() {
    name=plan-$1; n=$2; shift 2
    set -- "$deck" model.from=tests/reference/gqa generate.prompts=tests/reference/gqa/greedy.jsonl moe.balance=forced "$@"
    go "$name-dry" 0 1 plan "$@" --json run.ranks="$n" || return
    go "$name" 0 "$n" "$@" || return
    is "$name" "$(sed -n '/^peak_bytes:/,$p' "$TMP/$name/summary.yaml" | numbers)" \
        "$(grep -o '"arena_bytes": *[0-9]*' "$TMP/$name-dry.log" | sed 's/.*: *//' | numbers)"
}
planned one 1
planned chunks 1 generate.batch=2 generate.prefill_chunk=4
planned mesh 4 parallel.tensor=2 generate.batch=1
planned pipeline 4 parallel.tensor=2 parallel.pipeline=2 generate.prefill_chunk=4
planned zbv 2 parallel.pipeline=2 parallel.schedule=zbv
planned context 4 parallel.context=4 generate.prefill_chunk=8 generate.batch=3
planned context-heads 4 parallel.context=2 parallel.tensor=2 $by_heads generate.prefill_chunk=8
planned context-stages 8 parallel.context=2 parallel.pipeline=2 parallel.tensor=2 parallel.sequence=true
experts="model.from=tests/reference/latent generate.prompts=tests/reference/latent/greedy.jsonl generate.batch=1 generate.prefill_chunk=8"
planned experts 3 $experts parallel.data=3 parallel.expert=3
planned experts-context 8 $experts parallel.data=2 parallel.context=2 parallel.tensor=2 parallel.expert=4 parallel.expert_tensor=2 precision.recipe=bf16
# the first steps need less than the last, which meet thousands of keys
cp -r tests/reference/gqa "$TMP/endless"
sed -i -E 's/"eos_token_id": [0-9]+/"eos_token_id": null/' "$TMP/endless/config.json"
endless="model.from=$TMP/endless generate.prompts= generate.prompt_ids=[5] generate.max_new_tokens"
planned long 1 $endless=2500
[ -n "$SHORT" ] || planned long-context 2 $endless=4300 parallel.context=2
# what is remembered of a long prompt is divided by the ranks along context; what Mamba layers remember does not grow with it
# states RANKS TOKENS override...: of the rank that has most
states() {
    n=$1; tokens=$2; shift 2
    numbered "$tokens" >"$TMP/long.jsonl"
    go "states-$n-$tokens" 0 1 plan "$deck" --json model.from=tests/reference/gqa "generate.prompts=$TMP/long.jsonl" generate.max_new_tokens=1 \
        run.ranks="$n" parallel.context="$n" "$@" || return
    grep -o '"states_bytes": *[0-9]*' "$TMP/states-$n-$tokens.log" | sed 's/.*: *//' | sort -n | tail -n 1
}
for how in ring heads; do
    c=4; [ $how = ring ] || c=2
    set -- "parallel.context_attention=$how"
    is "divided-$how" $((($(states $c 4000 "$@") - $(states $c 2000 "$@")) * c)) $(($(states 1 4000 "$@") - $(states 1 2000 "$@")))
done
planned debug 2 parallel.tensor=2 parallel.sequence=true run.debug=true

# ---- texts: a model that learned one line by heart
printf 'The cat sat on the mat.\nIt was \303\251t\303\251.\n%.0s' $(seq 200) >"$TMP/lines.txt"
{ model "M-*" | sed 's/vocab_size: .*/vocab_size: 257/'
  printf '  tokenizer: bytes\ntrain:\n  steps: 60\n  global_batch: 4\n  sequence_length: 80\noptimizer:\n  learning_rate: 0.02\n'
  printf 'data:\n  kind: text\n  path: ["%s"]\n' "$TMP/lines.txt"; } >"$TMP/learn.yaml"
if go learned 0 1 "$TMP/learn.yaml"; then
    bytes="model.from=$TMP/learned model.tokenizer=bytes"
    text() { sed -E 's/.*"text": "(.*)", "stop".*/\1/' "$TMP/$1/generations.jsonl"; }
    go said 0 1 "$deck" $bytes "generate.prompt=The cat sat" generate.max_new_tokens=25 &&
        is said "$(text said)" ' on the mat.\nIt was été' &&
        is shown "$(grep -A1 'The cat' "$TMP/said.log")" "$(printf 'The cat sat on the mat.\nIt was été')"
    go half 0 1 "$deck" $bytes "generate.prompt=The cat sat" generate.max_new_tokens=21 &&
        is half "$(text half)" ' on the mat.\nIt was �'
    go stopped 0 2 "$deck" $bytes "generate.prompt=The cat" 'generate.stop=["mat", "the m"]' &&
        is stopped "$(text stopped) $(ends "$TMP/stopped")" ' sat on  text '
    printf 'The cat sat on\r\nIt was \303\251\n' >"$TMP/two.txt"
    printf '{"prompt": "The cat sat on", "id": 7}\n{"ids": [73, 116, 32, 119, 97, 115, 32, 195, 169]}\n' >"$TMP/two.jsonl"
    go from-txt 0 1 "$deck" $bytes "generate.prompts=$TMP/two.txt" && is from-txt "$(text from-txt | cut -c 1-9 | tr '\n' '|')" ' the mat.|té.\nThe|'
    go from-jsonl 0 2 "$deck" $bytes "generate.prompts=$TMP/two.jsonl" && is from-jsonl "$(new_ids "$TMP/from-jsonl")" "$(new_ids "$TMP/from-txt")"
    mpi 2 "$MESTAR" "$deck" $bytes generate.prompts=- "run.output=$TMP/from-input" <"$TMP/two.txt" >"$TMP/from-input.log" 2>&1
    is from-input "$(cat "$TMP/from-input/generations.jsonl")" "$(cat "$TMP/from-txt/generations.jsonl")"
    [ -n "$(words "$TMP/from-txt/summary.yaml" prefill_tokens_per_second)" ] && [ "$(words "$TMP/from-txt/summary.yaml" decode_tokens_per_second)" ] &&
        ok pace || fail pace "summary.yaml: $(cat "$TMP/from-txt/summary.yaml")"
fi

# ---- what cannot be continued
# refused NAME WORDS override...
refused() {
    name=$1; say=$2; shift 2
    go "$name" 2 2 "$deck" model.from=tests/reference/dense "$@" || return
    case $(cat "$TMP/$name.log") in *"$say"*) ;; *) fail "$name" "$(tail -n 3 "$TMP/$name.log")"; return ;; esac
    [ ! -e "$TMP/$name" ] && [ "$(grep -c "$say" "$TMP/$name.log")" = 1 ] && ok "$name" || fail "$name" "says it twice, or left a folder"
}
printf '{"ids": [4, 101]}\n{"ids": []}\n{"id": 3}\n{"ids": [3\n{"ids": [3, 1.5]}\n{"prompt": "\\u0000"}\n' >"$TMP/bad.jsonl"
: >"$TMP/empty.txt"
go checked 2 1 check "$deck" model.from=tests/reference/dense "generate.prompts=$TMP/bad.jsonl" && is checked "$(tail -n 1 "$TMP/checked.log")" "6 mistakes; nothing was run"
refused no-tokenizer "the model has no tokenizer" generate.prompt=hello
refused stop-text "needs a tokenizer" 'generate.prompt_ids=[3]' 'generate.stop=["."]'
refused no-file "No such file" "generate.prompts=$TMP/none.txt"
refused no-lines "has no prompts" model.tokenizer=bytes "generate.prompts=$TMP/empty.txt"
refused large-id "bad.jsonl:1: token 2 is 101, and the model's vocabulary (model.vocab_size) ends at 100" "generate.prompts=$TMP/bad.jsonl"
refused empty-prompt "bad.jsonl:2: is empty" "generate.prompts=$TMP/bad.jsonl"
refused no-key "bad.jsonl:3: is not an object with either" "generate.prompts=$TMP/bad.jsonl"
refused cut-line "bad.jsonl:4:" "generate.prompts=$TMP/bad.jsonl"
refused part-id "bad.jsonl:5: entry 2 of \"ids\" is no token's number" "generate.prompts=$TMP/bad.jsonl"
refused nul "u0000 is not read here" "generate.prompts=$TMP/bad.jsonl"
cp -r "$TMP/model" "$TMP/same-folder"
go same-folder 2 1 "$deck" "$first" "model.from=$TMP/same-folder/" &&
    is same-folder "$(grep -c 'run.output: is the folder that the model is read from' "$TMP/same-folder.log")" 1
go no-model 2 1 "$TMP/learn.yaml" run.mode=generate generate.prompt=The && is no-model "$(grep -c 'mode generate needs the folder' "$TMP/no-model.log")" 1
finish
