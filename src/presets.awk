# Turns decks into C text: one PRESET("name", "line\n" "line\n" ...) for each file.
FNR == 1 {
    if (NR > 1) print ")"
    name = FILENAME
    sub(/.*\//, "", name)
    sub(/\.yaml$/, "", name)
    print "PRESET(\"" name "\","
}
{
    gsub(/\\/, "\\\\")
    gsub(/"/, "\\\"")
    print "\"" $0 "\\n\""
}
END { print ")" }
