#!/bin/bash
# Text as a run sees it: the mesh changes nothing about who reads what in all, lines of JSON become tokens once however many
# runs start together and whoever is killed while at it, and mistakes about data are told before anything is written.
. tests/lib.sh
begin
{ model "M-*E" | sed 's/vocab_size: .*/vocab_size: 257/'; cat <<YAML
  tokenizer: bytes
train:
  steps: 3
  global_batch: 4
  sequence_length: 64
checkpoint:
  interval: 0
data:
  kind: text
  path: [src, "io/*.c", README.md]
  blend: [2, 1, 0.5]
  split: 0.1
  cache: $TMP/cache
YAML
} >"$TMP/deck.yaml"

# As many documents as it takes to be at work for a while: the program's own text, again and again.
lines=$TMP/lines.jsonl
awk '{ gsub(/["\\\t]/, " "); text = text $0 "\\n"; if (NR % 20 == 0) { print "{\"id\": " NR ", \"text\": \"" text "\"}"; text = "" } }' \
    src/*.c io/*.c kernels/*.c parallel/*.c >"$TMP/some"
copies=25; [ -z "$LONG" ] || copies=100
for i in $(seq $copies); do cat "$TMP/some"; done >"$lines"
json="data.path=$lines data.blend=[1]"

go one 0 1 "$TMP/deck.yaml" && for n in 2 4; do
    go "data-$n" 0 $n "$TMP/deck.yaml" || continue
    near "$(metric "$TMP/one" '$' loss)" "$(metric "$TMP/data-$n" '$' loss)" 1e-5 && ok "data-$n" ||
        fail "data-$n" "$(metric "$TMP/data-$n" '$' loss), want $(metric "$TMP/one" '$' loss)"
done
grep -q 'documents held out.*57.14 % src, 28.57 % io/\*.c, 14.29 % README.md' "$TMP/one.log" && ok described ||
    fail described "$(grep '^data' "$TMP/one.log")"

# Killed while tokens are made, at many moments: a rank, or the launcher. Then two runs together.
go reference 0 1 "$TMP/deck.yaml" $json "data.cache=$TMP/cache-reference"
below() { # the processes that come from this one
    for below_s in $(grep -l -s "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status); do
        below_s=${below_s#/proc/}; echo "${below_s%/status}"; below "${below_s%/status}"
    done
}
for i in $(seq 12); do
    mpi 2 "$MESTAR" "$TMP/deck.yaml" $json "run.output=$TMP/killed" >"$TMP/killed.log" 2>&1 </dev/null &
    shell=$!
    sleep "0.$(printf %02d $((10 + 7 * i)))"
    all=($(below $shell))
    [ ${#all[@]} = 0 ] || kill -9 "${all[$((i % ${#all[@]}))]}" 2>/dev/null
    wait $shell 2>/dev/null
done
ls "$TMP"/cache/*/ | sed 's/^/    left by the killed: /' | head -n 3
mpi 2 "$MESTAR" "$TMP/deck.yaml" $json "run.output=$TMP/second" >"$TMP/second.log" 2>&1 </dev/null &
go first 0 2 "$TMP/deck.yaml" $json
wait $! && ok together || fail together "$(tail -n 2 "$TMP/second.log")"
for name in first second; do
    near "$(metric "$TMP/$name" '$' loss)" "$(metric "$TMP/reference" '$' loss)" 1e-5 && ok "after-kills-$name" ||
        fail "after-kills-$name" "$(metric "$TMP/$name" '$' loss), want $(metric "$TMP/reference" '$' loss)"
done
ls "$TMP"/cache/*/ | grep -q part && fail swept "$(ls "$TMP"/cache/*/ | grep part)" || ok swept
diff -r -x lock "$TMP/cache" "$TMP/cache-reference" >"$TMP/diff" && ok same-cache || fail same-cache "$(head -n 3 "$TMP/diff")"

# mistakes NAME PATTERN override...: exit 2 with these words, and nothing written
mistakes() {
    name=$1 pattern=$2; shift 2
    go "$name" 2 2 "$TMP/deck.yaml" "$@" || return
    if [ -e "$TMP/$name" ]; then fail "$name" "$TMP/$name was made"
    elif grep -q -E -- "$pattern" "$TMP/$name.log"; then ok "$name"
    else fail "$name" "no '$pattern' in: $(head -c 400 "$TMP/$name.log" | tr '\n' '|')"; fi
}
mistakes path-missing 'nowhere: No such file' 'data.path=[src, nowhere, README.md]'
mistakes no-match '\*\.none: no file has a name' 'data.path=[src, "*.none", README.md]'
mistakes too-short 'README.md: the text has [0-9]+ tokens' 'data.path=[src, io, README.md]' data.split=0 train.sequence_length=100000
mistakes one-document 'data.split needs at least two documents' 'data.path=README.md' 'data.blend=[1]'
mistakes weights '3 weights for 1 path' 'data.path=src'
mistakes cache-is-a-file 'README.md/.* cannot be used' $json data.cache=README.md
finish
