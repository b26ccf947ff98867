/* Undefines the row macros of deck.def, after each reading of it. (No guard: included many times.)
 * */
#undef SECTION
#undef INT
#undef REAL
#undef BOOL
#undef TEXT
#undef CHOICE
#undef TEXTS
#undef REALS
#undef END
