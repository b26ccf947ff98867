/* Undefines the row macros of ops.def, after each reading of it. (No guard: included many times.)
 */
#undef OP
#undef IN
#undef OUT
#undef ADD
#undef INOUT
#undef INR
#undef OUTR
#undef ADDR
#undef INOUTR
#undef INI
#undef OUTI
#undef INOUTL
#undef TMPR
#undef ACC
#undef N
#undef R
#undef VIEW
#undef MET
