#!/bin/bash
# A model and its tokenizer stay together: text is learned with any tokenizer.json, the saved folder has it, and nobody needs to
# name it again; a model of bytes remembers that too. Tokens are those of the tokenizers package, on any number of ranks.
. tests/lib.sh
begin
is() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "got $(printf %s "$2" | head -c 300), want $(printf %s "$3" | head -c 300)"; fi; }
same() { cmp -s "$2" "$3" && ok "$1" || fail "$1" "$2 and $3 differ: $(diff "$2" "$3" | head -n 2 | cut -c 1-200)"; }
# refused NAME WORDS deck override...
refused() {
    name=$1; say=$2; shift 2
    go "$name" 2 2 "$@" || return
    case $(cat "$TMP/$name.log") in *"$say"*) ;; *) fail "$name" "$(tail -n 3 "$TMP/$name.log")"; return ;; esac
    [ ! -e "$TMP/$name" ] && [ "$(grep -c -e "$say" "$TMP/$name.log")" = 1 ] && ok "$name" || fail "$name" "says it twice, or left a folder"
}

# ---- tokens: every fixture's strings, from a folder without a model
printf 'run:\n  mode: convert\nconvert:\n  what: tokens\n' >"$TMP/tokens.yaml"
n=0
for f in tests/tokenizers/*/; do
    c=$(basename "$f"); n=$((n + 1))
    "$B/tests/test_tokenizer" cases "$f" "$TMP/$c.jsonl" "$TMP/$c.want"
    go "tokens-$c" 0 $((n == 1 ? 3 : 1)) "$TMP/tokens.yaml" "model.from=$f" "data.path=$TMP/$c.jsonl" "convert.to=$TMP/made/$c" \
        run.threads=$((1 + n % 3)) && same "tokens-$c" "$TMP/made/$c" "$TMP/$c.want"
done
[ "$(cat "$TMP"/*.want | wc -l)" -gt 1000 ] && ok tokens-many || fail tokens-many "$(cat "$TMP"/*.want | wc -l) lines"
llama=tests/tokenizers/llama3
go tokens-two 0 1 "$TMP/tokens.yaml" "model.tokenizer=$llama/tokenizer.json" "data.path=[$TMP/llama3.jsonl, $TMP/gpt2.jsonl]" \
    "convert.to=$TMP/two" && is tokens-two "$(wc -l <"$TMP/two")" "$(cat "$TMP/llama3.jsonl" "$TMP/gpt2.jsonl" | wc -l)"
printf '"\303\251a"\n' >"$TMP/bytes.jsonl"
go tokens-bytes 0 1 "$TMP/tokens.yaml" model.tokenizer=bytes "data.path=$TMP/bytes.jsonl" "convert.to=$TMP/bytes.out" &&
    is tokens-bytes "$(cat "$TMP/bytes.out")" '{"ids": [195, 169, 97], "text": "\u00E9a"}'
printf '"good"\n"cut\n7\n\n' >"$TMP/bad.jsonl"
bad="model.from=$llama data.path=$TMP/bad.jsonl convert.to=$TMP/not-made"
refused bad-line "bad.jsonl:2: is not a JSON string" "$TMP/tokens.yaml" $bad
refused bad-kind "bad.jsonl:3: is JSON, but not a string" "$TMP/tokens.yaml" $bad
refused empty-line "bad.jsonl:4: is not a JSON string" "$TMP/tokens.yaml" $bad
ls "$TMP" | grep -q not-made && fail nothing-left "$(ls "$TMP" | grep not-made)" || ok nothing-left
refused no-lines "none.jsonl: cannot be opened" "$TMP/tokens.yaml" "model.from=$llama" "data.path=$TMP/none.jsonl" "convert.to=$TMP/not-made"
refused exists "exists already" "$TMP/tokens.yaml" "model.from=$llama" "data.path=$TMP/gpt2.jsonl" "convert.to=$TMP/gpt2.jsonl"
refused no-tokenizer "needs a tokenizer" "$TMP/tokens.yaml" model.from=tests/reference/dense "data.path=$TMP/gpt2.jsonl" "convert.to=$TMP/not-made"
go check 0 1 check "$TMP/tokens.yaml" "model.from=$llama" "data.path=$TMP/gpt2.jsonl" "convert.to=$TMP/not-made" &&
    is check "$(sed -n 2p "$TMP/check.log")" "ids: 608"

# ---- learning a line by heart with a tokenizer
printf 'The cat sat on the mat.\nIt was \303\251t\303\251.\n%.0s' $(seq 100) >"$TMP/lines.txt"
for i in 1 2 3; do cp "$TMP/lines.txt" "$TMP/lines$i.txt"; done
{ model "M-*" | sed 's/vocab_size: .*/vocab_size: 700/'
  printf 'train:\n  steps: 60\n  global_batch: 4\n  sequence_length: 48\noptimizer:\n  learning_rate: 0.02\n'
  printf 'data:\n  kind: text\n  path: ["%s"]\n  cache: %s\n' "$TMP/lines[1-3].txt" "$TMP/cache"; } >"$TMP/learn.yaml"
printf 'run:\n  mode: generate\ngenerate:\n  prompt: The cat sat\n  max_new_tokens: 24\n' >"$TMP/generate.yaml"
text() { sed -E 's/.*"text": "(.*)", "stop".*/\1/' "$TMP/$1/generations.jsonl"; }
said() { # said NAME FOLDER override...: what the model says when nobody names its tokenizer
    name=$1 from=$2; shift 2
    go "$name" 0 1 "$TMP/generate.yaml" "model.from=$from" "$@" || return
    case "$(text "$name")" in ' on the mat.\nIt'*) ok "$name" ;; *) fail "$name" "$(text "$name")" ;; esac
}
if go learned 0 1 "$TMP/learn.yaml" "model.tokenizer=$llama"; then
    last=$TMP/learned/checkpoints/step-00000060
    same saved-tokenizer "$last/tokenizer.json" $llama/tokenizer.json
    same saved-config "$last/tokenizer_config.json" $llama/tokenizer_config.json
    is saved-ids "$(number "$last/config.json" bos_token_id) $(number "$last/config.json" eos_token_id)" "600 601"
    said own "$TMP/learned"
    is shown "$(grep -m1 'The cat' "$TMP/own.log")" "The cat sat on the mat."
    go stopped 0 2 "$TMP/generate.yaml" "model.from=$TMP/learned" 'generate.stop=["the m"]' && is stopped "$(text stopped)" ' on '
    go evaluated 0 2 "$TMP/learn.yaml" run.mode=evaluate "model.from=$TMP/learned" model.hybrid_override_pattern="M-*" &&
        is evaluated "$(grep -c '"loss"' "$TMP/evaluated/evaluation.json")" 1
    go rewritten 0 1 "$TMP/learn.yaml" run.mode=convert "model.from=$TMP/learned" "convert.to=$TMP/again" &&
        said said-again "$TMP/again" && same again-tokenizer "$TMP/again/tokenizer.json" $llama/tokenizer.json
    # Another tokenizer takes the place of the old one; and the run of two ranks read what one did.
    go changed 0 1 "$TMP/learn.yaml" run.mode=train "model.from=$TMP/again" model.tokenizer=bytes train.steps=1 &&
        is changed "$(ls "$TMP/changed/checkpoints/step-00000001" | grep -c tokenizer) $(number "$TMP/changed/checkpoints/step-00000001/config.json" eos_token_id)" "0 256"
    go ranks 0 2 "$TMP/learn.yaml" "model.tokenizer=$llama" train.steps=3 "data.cache=$TMP/cache-of-two" &&
        near "$(metric "$TMP/ranks" 1 loss)" "$(metric "$TMP/learned" 1 loss)" 1e-6 && ok ranks || fail ranks "$(metric "$TMP/ranks" 1 loss)"
    cp -r "$TMP/ranks" "$TMP/resumed"
    go resumed 0 1 "$TMP/learn.yaml" "model.tokenizer=$llama" train.steps=4 run.name=ranks &&
        same resumed "$TMP/resumed/checkpoints/step-00000004/tokenizer.json" $llama/tokenizer.json
fi
# A space between prompt and answer belongs to the answer, where a tokenizer keeps it inside tokens; a text begins with <s>.
mkdir "$TMP/llama2"; cp tests/tokenizers/llama2/tokenizer.json "$TMP/llama2"; echo '{"eos_token": "</s>"}' >"$TMP/llama2/special_tokens_map.json"
go learned-spaces 0 1 "$TMP/learn.yaml" "model.tokenizer=$TMP/llama2" model.vocab_size=856 && said spaces "$TMP/learned-spaces"
go learned-bytes 0 1 "$TMP/learn.yaml" model.tokenizer=bytes && said bytes "$TMP/learned-bytes" &&
    is bytes-config "$(grep -c '"mestar_tokenizer": "bytes"' "$TMP/learned-bytes/checkpoints/step-00000060/config.json")" 1

# ---- what cannot be learned
refused too-many-ids "700 is too few for the tokenizer tests/tokenizers/gemma, whose ids end at 855; 856 is the least" "$TMP/learn.yaml" \
    model.tokenizer=tests/tokenizers/gemma
refused no-end "does not say which token ends a document" "$TMP/learn.yaml" model.tokenizer=tests/tokenizers/gpt2
refused no-folder "there is no file or folder nowhere" "$TMP/learn.yaml" model.tokenizer=nowhere
refused no-file "src/tokenizer.json" "$TMP/learn.yaml" model.tokenizer=src
refused none "data.kind text needs a tokenizer" "$TMP/learn.yaml"
finish
