#!/bin/bash
# make install: all of it below PREFIX, runs from anywhere, and make uninstall leaves nothing.
. tests/lib.sh
begin
if [ "$B" != build ]; then ok "install is tried with the ordinary build"; finish; fi
tree=$TMP/tree
quiet_make() { make "$@" >"$TMP/make.log" 2>&1 || fail "make-$1" "$(tail -n 3 "$TMP/make.log" | tr '\n' '|')"; }

quiet_make install PREFIX="$tree"
for f in bin/mestar share/mestar/inputs/quickstart.yaml share/mestar/inputs/KEYS.md share/mestar/inputs/models/nano-30b.yaml \
    share/mestar/jobs/README.md share/mestar/README.md share/man/man1/mestar.1 share/man/man5/mestar-keys.5; do
    [ -s "$tree/$f" ] && ok "installs $f" || fail "installs $f" "absent or empty"
done
(cd "$tree" && bin/mestar check share/mestar/inputs/tiny-pretrain.yaml >check.txt 2>&1) && grep -q '^parameters: ' "$tree/check.txt" &&
    ok "runs elsewhere" || fail "runs elsewhere" "$(tail -n 1 "$tree/check.txt")"
rm -f "$tree/check.txt"
grep -q 'train.sequence_length = 1024' "$tree/share/man/man5/mestar-keys.5" || grep -q 'sequence_length' "$tree/share/man/man5/mestar-keys.5" &&
    ok "manual of the keys" || fail "manual of the keys" "no sequence_length in it"

# What the modulefile names is there.
module=$(find "$tree/lib/modulefiles/mestar" -type f)
for key in PATH MANPATH MESTAR_HOME; do
    folder=$(awk -v k="$key" '$2 == k { print $3 }' "$module")
    [ -d "$folder" ] && [ -z "${folder##"$tree"*}" ] && ok "modulefile $key" || fail "modulefile $key" "'$folder' is not a folder of $tree"
done
head -n 1 "$module" | grep -q '^#%Module' && ok "modulefile head" || fail "modulefile head" "$(head -n 1 "$module")"

quiet_make uninstall PREFIX="$tree"
left=$(find "$tree" -type f)
[ -z "$left" ] && ok "uninstall" || fail "uninstall" "left: $left"

# While packaging, everything goes below DESTDIR and names PREFIX.
quiet_make install PREFIX=/somewhere DESTDIR="$tree/stage"
[ -x "$tree/stage/somewhere/bin/mestar" ] && grep -q ' PATH /somewhere/bin$' "$tree/stage/somewhere/lib/modulefiles/mestar/"* &&
    ok "DESTDIR" || fail "DESTDIR" "not below it, or named in the modulefile"
finish
