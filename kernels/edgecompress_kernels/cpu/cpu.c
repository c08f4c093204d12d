/* Checks once, when the library is registered, that this CPU has the features that the kernels were compiled for: a library
 * for another CPU is rejected with a message instead of an illegal instruction. Does not use libc. */

#include "shim.h"

typedef struct Feature {
    const char *name; /* as in a target's file */
    uint32_t word, bit; /* register and bit */
} Feature;

#if defined(__x86_64__)

enum { LEAF_1_ECX, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX, WORDS };
static const Feature KNOWN[] = {
    {"fma", LEAF_1_ECX, 12},      {"f16c", LEAF_1_ECX, 29},     {"avx2", LEAF_7_EBX, 5},
    {"avx512f", LEAF_7_EBX, 16},  {"avx512dq", LEAF_7_EBX, 17}, {"avx512bw", LEAF_7_EBX, 30},
    {"avx512vl", LEAF_7_EBX, 31}, {"avx512_vnni", LEAF_7_ECX, 11}, {"amx_tile", LEAF_7_EDX, 24},
    {"amx_int8", LEAF_7_EDX, 25}, {NULL, 0, 0},
};

static long system_call(long number, long first, long second) {
    long found = number;
    __asm__ volatile("syscall" : "+a"(found) : "D"(first), "S"(second) : "rcx", "r11", "memory");
    return found;
}

/* On Linux, a process must request AMX tiles. */
static int permitted(const Feature *feature) {
    enum { ARCH_PRCTL = 158, ASK = 0x1023, TILE_DATA = 18 };
    return feature->word != LEAF_7_EDX || system_call(ARCH_PRCTL, ASK, TILE_DATA) == 0;
}

static int read_cpu(uint64_t words[WORDS]) {
    uint32_t a = 1, b, c = 0, d, most = 0;
    __asm__ volatile("cpuid" : "+a"(most), "=b"(b), "+c"(c), "=d"(d));
    c = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    words[LEAF_1_ECX] = c;
    words[LEAF_7_EBX] = words[LEAF_7_ECX] = words[LEAF_7_EDX] = 0;
    uint32_t kept = 0; /* registers that the system saves */
    if (c >> 27 & 1) __asm__ volatile("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    if ((kept & 6) != 6 || most < 7) return 1;
    a = 7, c = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const int wide = (kept & 0xE0) == 0xE0;
    words[LEAF_7_EBX] = wide ? b : b & 0xFFFF;
    words[LEAF_7_ECX] = wide ? c : 0;
    words[LEAF_7_EDX] = (kept >> 17 & 3) == 3 ? d : 0;
    return 1;
}

#elif defined(__aarch64__)

enum { HWCAP, WORDS };
static int permitted(const Feature *feature) { return feature != NULL; }
static const Feature KNOWN[] = {{"asimd", HWCAP, 1}, {"asimdhp", HWCAP, 10}, {"asimddp", HWCAP, 20}, {NULL, 0, 0}};

static long system_call(long number, long first, long second, long third, long fourth) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = first, x1 __asm__("x1") = second;
    register long x2 __asm__("x2") = third, x3 __asm__("x3") = fourth;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

/* The kernel's auxiliary vector: pairs of type and value. */
static int read_cpu(uint64_t words[WORDS]) {
    enum { OPENAT = 56, CLOSE = 57, READ = 63, HERE = -100, KIND_HWCAP = 16 };
    uint64_t pairs[2];
    const long file = system_call(OPENAT, HERE, (long)"/proc/self/auxv", 0, 0);
    int found = 0;
    if (file < 0) return 0;
    while (!found && system_call(READ, file, (long)pairs, sizeof pairs, 0) == sizeof pairs)
        if (pairs[0] == KIND_HWCAP) words[HWCAP] = pairs[1], found = 1;
    system_call(CLOSE, file, 0, 0, 0);
    return found;
}

#endif

/* A pause for a waiting thread, and yielding its core to other threads. */
#if defined(__x86_64__)
static void relax(void) { __asm__ volatile("pause"); }
static void let_others_run(void) { system_call(24, 0, 0); } /* sched_yield */
#elif defined(__aarch64__)
static void relax(void) { __asm__ volatile("yield"); }
static void let_others_run(void) { system_call(124, 0, 0, 0, 0); }
#endif

static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

/* The first of ``needs`` (ended by NULL) that this CPU lacks or its system does not permit; NULL if there is none, or if unknown. */
static const char *lacking(const char *const *needs) {
    uint64_t words[WORDS];
    if (!read_cpu(words)) return NULL;
    for (; *needs; needs++) {
        const Feature *feature = KNOWN;
        while (feature->name && !same(feature->name, *needs)) feature++;
        if (!feature->name || !(words[feature->word] >> feature->bit & 1) || !permitted(feature)) return *needs;
    }
    return NULL;
}

static char *append_text(char *to, const char *end, const char *text) {
    while (*text && to < end) *to++ = *text++;
    *to = 0;
    return to;
}
