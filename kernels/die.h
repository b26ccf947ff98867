/* die: how a run ends when something fails that no caller can cope with.
 *
 * Two kinds end here: the world's failures (disk, network, memory) by die(), and our own mistakes by
 * bug().  Mistakes of the person who wrote the deck do not: they are collected (mistakes.h) and
 * end a run with exit code 2.  The transport sets a hook, so that one dying rank takes the others
 * along within seconds. */
#ifndef KERNELS_DIE_H
#define KERNELS_DIE_H

/* Prints "mestar: rank R on HOST: <text>" to standard error, says what to do if the text does, and ends
 * every rank with exit code 1. */
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* As die, for states that only a mistake of ours can reach: bug("what") names file and line. */
#define bug(...) die_bug(__FILE__, __LINE__, __VA_ARGS__)
_Noreturn void die_bug(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Who speaks, and what ends all ranks (NULL: exit).  `last_words` is called first, may be NULL. */
void die_set_rank(int rank);
void die_set_hooks(void (*last_words)(const char *text), void (*abort_all)(int code));

/* malloc and friends that die instead of returning NULL; host memory for tables, never for tensors. */
void *die_alloc(unsigned long bytes);                  /* zeroed; 0 bytes give a valid pointer */
void *die_realloc(void *p, unsigned long bytes);
char *die_strdup(const char *s);
char *die_format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));   /* malloc'd text */

#endif
