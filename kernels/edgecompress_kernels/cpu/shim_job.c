/* ---- A job: an ordered list of work that threads share with a single dispatch ----
 *
 * ONNX Runtime dispatches to its threads once per operator; dependencies between parts are handled here. Free threads take
 * the next part. No thread waits for a part that no thread has taken, so a job also finishes with one thread, and in any
 * order in which ONNX Runtime runs its threads. */

#include "shim.h"

enum { MOST_HELPERS = 64, PATIENCE = 4096 };

static void start_job(Job *job) { job->count = job->finished = job->helpers = 0, job->row_parts = 0; }

static void add_work(Job *job, Kernel run, void *parameters, int64_t parts) {
    Work *const work = &job->work[job->count];
    *work = (Work){run, parameters, parts, 0};
    job->turns[job->count].taken = job->turns[job->count].done = 0;
    job->count++;
    job->row_parts = 0;
}

/* Columns per part of a row-wise kernel: a whole row, or a quarter of a long row if there are few rows. */
static int64_t columns_of_part(int64_t rows, int64_t width) {
    return rows < 4 && width >= 4096 ? (width / 4 + 255) / 256 * 256 : width;
}

/* Add work on rows [rows, width] in parts of ``columns``; fused with the previous work if that has the same parts. */
static void add_row_work(Job *job, Kernel run, void *parameters, int64_t rows, int64_t width, int64_t columns) {
    const int64_t parts = rows * ((width + columns - 1) / columns);
    const int follows = job->row_parts == parts && job->row_width == width;
    add_work(job, run, parameters, parts);
    job->work[job->count - 1].follows = follows;
    job->row_parts = parts;
    job->row_width = width;
}

static void help(void *user, size_t helper) {
    Job *const job = user;
    if (__atomic_load_n(&job->finished, __ATOMIC_ACQUIRE)) return;
    __atomic_fetch_add(&job->helpers, 1, __ATOMIC_RELAXED);
    for (int i = 0, end; i < job->count; i = end) {
        for (end = i + 1; end < job->count && job->work[end].follows;) end++;
        Turn *const turn = &job->turns[i];
        const int64_t parts = job->work[i].parts;
        for (int64_t first = __atomic_load_n(&turn->taken, __ATOMIC_RELAXED); first < parts;) {
            /* Take adjacent parts, for the hardware prefetcher, and fewer towards the end. */
            const int helpers = __atomic_load_n(&job->helpers, __ATOMIC_RELAXED);
            int64_t end_part = first + (parts - first) / (helpers > 2 ? 2 * helpers : 4); /* more threads can still arrive */
            if (end_part == first) end_part++;
            if (!__atomic_compare_exchange_n(&turn->taken, &first, end_part, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
            for (int64_t part = first; part < end_part; part++)
                for (int j = i; j < end; j++) job->work[j].run(job->work[j].parameters, part);
            __atomic_fetch_add(&turn->done, end_part - first, __ATOMIC_RELEASE);
            first = __atomic_load_n(&turn->taken, __ATOMIC_RELAXED);
        }
        for (int spins = 1; __atomic_load_n(&turn->done, __ATOMIC_ACQUIRE) < parts; spins++)
            if (spins % PATIENCE) relax();
            else let_others_run(); /* the thread with the part may have lost its core */
    }
    __atomic_store_n(&job->finished, 1, __ATOMIC_RELEASE);
}

static Status *run_job(Context *context, Job *job) {
    int64_t most = 1;
    for (int i = 0; i < job->count; i++)
        if (job->work[i].parts > most) most = job->work[i].parts;
    if (most > MOST_HELPERS) most = MOST_HELPERS;
    if (most > 1) return parallel_for(context, help, most, 0, job);
    help(job, 0);
    return NULL;
}

static void *room(Room *room, size_t bytes) {
    char *const place = room->base ? room->base + room->used : NULL;
    room->used += up(bytes);
    return place;
}

/* Run the planner twice: first to count the memory, then with it. */
static Status *run_planned(Context *context, Plan plan, void *call) {
    Job job;
    Room memory = {NULL, 0};
    Allocator *allocator;
    Scratch *scratch;
    start_job(&job);
    plan(call, &memory, &job);
    TRY(take_scratch(memory.used, &allocator, &scratch, &memory.base));
    memory.used = 0;
    start_job(&job);
    plan(call, &memory, &job);
    Status *const status = run_job(context, &job);
    give_back(allocator, scratch);
    return status;
}
