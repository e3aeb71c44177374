/* The peer of the exact curve: Olken's algorithm with a hash table and a Fenwick tree over the axis of time. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* References by distance, IN line (n), OUT counts (n); returns first references, or -1 without memory.
 *
 * The axis has 4 slots for each line; when it is full, live lines are numbered anew. `lines` is a bound on them.
 */
int64_t fenwick_distances(const int64_t *line, int64_t n, int64_t lines, int64_t *counts) {
    int64_t room = 1, axis = 4 * lines > 1024 ? 4 * lines : 1024, live = 0, now = 0, cold = 0;
    while (room < 2 * lines) room *= 2;
    int64_t *key = malloc(room * sizeof *key), *last = malloc(room * sizeof *last);
    int64_t *owner = malloc(axis * sizeof *owner);
    int32_t *tree = calloc(axis + 1, sizeof *tree);
    if (!key || !last || !owner || !tree) return -1;
    memset(key, 0xff, room * sizeof *key);
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = ((uint64_t)line[i] * UINT64_C(0x9e3779b97f4a7c15)) >> 20 & (uint64_t)(room - 1);
        while (key[at] != -1 && key[at] != line[i]) at = (at + 1) & (uint64_t)(room - 1);
        if (now == axis) {
            int64_t kept = 0;
            for (int64_t slot = 0; slot < axis; slot++) {
                const int64_t o = owner[slot];
                if (last[o] != slot) continue;
                last[o] = kept;
                owner[kept++] = o;
            }
            memset(tree, 0, (axis + 1) * sizeof *tree);
            for (int64_t p = 1; p <= axis; p++) {
                tree[p] += p <= kept;
                const int64_t up = p + (p & -p);
                if (up <= axis) tree[up] += tree[p];
            }
            now = kept;
        }
        if (key[at] == -1) {
            key[at] = line[i];
            cold++;
            live++;
        } else {
            int64_t before = 0;
            for (int64_t p = last[at] + 1; p; p -= p & -p) before += tree[p];
            counts[live - before]++;
            for (int64_t p = last[at] + 1; p <= axis; p += p & -p) tree[p]--;
        }
        for (int64_t p = now + 1; p <= axis; p += p & -p) tree[p]++;
        owner[now] = (int64_t)at;
        last[at] = now++;
    }
    free(key);
    free(last);
    free(owner);
    free(tree);
    return cold;
}
