/* ---- CachedAttention: attention.py, and CachedAttentionInt8: attention_int8.py ---- */

#include "shim.h"

/* A message of either operator, chosen by ``int8``. */
#define SAY(text) (int8 ? "edgecompress CachedAttentionInt8: " text : "edgecompress CachedAttention: " text)
#define BAD(text) create_status(INVALID_ARGUMENT, SAY(text))

static const char *attention_name(const CustomOp *op) {
    return op == &INT8_ATTENTION ? INT8_ATTENTION_NAME : ATTENTION_NAME;
}
static size_t attention_inputs(const CustomOp *op) { return op == &INT8_ATTENTION ? INT8_ATTENTION_INPUTS : ATTENTION_INPUTS; }
static size_t attention_outputs(const CustomOp *op) { return 3; }
static int attention_input_kind(const CustomOp *op, size_t index) {
    const int turned = index > ATTENTION_TOTAL && index < ATTENTION_INPUTS;
    return index == ATTENTION_K || index == ATTENTION_V || turned ? OPTIONAL : REQUIRED;
}
static int type_of_input(int int8, size_t index) {
    const int cache = index == ATTENTION_PAST_KEY || index == ATTENTION_PAST_VALUE;
    const int length = index == ATTENTION_LAST || index == ATTENTION_TOTAL;
    return length ? INT32 : index == ATTENTION_POSITIONS ? INT64 : cache && int8 ? INT8 : FLOAT;
}
static int attention_input_type(const CustomOp *op, size_t index) { return type_of_input(op == &INT8_ATTENTION, index); }
static int attention_output_type(const CustomOp *op, size_t index) {
    return index > 0 && op == &INT8_ATTENTION ? INT8 : FLOAT;
}

static Status *read_attention(int int8, const Info *info, AttentionState *made) {
    made->int8 = int8;
    READ_ATTENTION_ATTRIBUTES(info, made);
    if (made->kv_heads < 1 || made->heads < 1 || made->heads % made->kv_heads)
        return BAD("num_heads must be a multiple of kv_num_heads");
    return NULL;
}

static Status *attention_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    TRY(state_of(sizeof(AttentionState), state));
    return read_attention(op == &INT8_ATTENTION, info, *state);
}

static void copy(char *to, const char *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = from[i];
}

/* The present buffer: past's memory if the caller bound the same memory to both, else a copy of past. */
static Status *present_of(Context *context, size_t index, const Tensor *past, int64_t capacity, int64_t row_bytes, void **data) {
    Value *value = NULL;
    const int64_t dims[4] = {past->dims[0], past->dims[1], capacity, past->dims[3]};
    TRY(output(context, index, dims, 4, &value));
    TRY(tensor_data(value, data));
    if (*data == past->data) return NULL;
    for (int64_t i = 0; i < dims[0] * dims[1]; i++)
        copy((char *)*data + i * capacity * row_bytes, (const char *)past->data + i * past->dims[2] * row_bytes,
             past->dims[2] * row_bytes);
    return NULL;
}

/* Set the sizes of ``p`` after checking that the inputs match. */
static Status *find_attention(const AttentionState *s, const AttentionInputs *in, const Attention **kind, AttentionParameters *p) {
    const int int8 = s->int8;
    const int64_t size = s->size, group = s->heads / s->kv_heads, width = s->heads * size, kv_width = s->kv_heads * size;
    const Attention *found = int8 ? INT8_ATTENTIONS : ATTENTIONS;
    while (found->size && found->size != size) found++;
    *kind = found;
    if (!found->size)
        return create_status(NOT_IMPLEMENTED, SAY("this library has no kernel for this head_size"));
    const Tensor *const q = &in->q, *const past = &in->past_key;
    if (q->rank != 3 || q->dims[2] != (in->k.data ? width : width + 2 * kv_width))
        return BAD("the query does not have the width of its heads");
    const int64_t batch = q->dims[0], tokens = q->dims[1];
    if (in->k.data && (!in->v.data || in->k.elements != batch * tokens * kv_width || in->v.elements != in->k.elements))
        return BAD("keys or values do not have the size of the query");
    if (past->rank != 4 || in->past_value.rank != 4 || past->dims[0] != batch || past->dims[1] != s->kv_heads ||
        past->dims[3] != size || in->past_value.elements != past->elements || in->past_value.dims[2] != past->dims[2])
        return BAD("the past must be [B, kv_num_heads, capacity, head_size]");
    if (in->last.elements != batch || in->total.elements != 1)
        return BAD("seqlens_k must be [B] and total_sequence_length one number");
    const int64_t rotary = in->cos.data ? 2 * in->cos.dims[in->cos.rank - 1] : 0;
    if (rotary && (!in->sin.data || !in->positions.data || in->sin.elements != in->cos.elements ||
                   in->positions.elements != batch * tokens || rotary > size || rotary % 32 || in->cos.rank != 2))
        return BAD("cos, sin and position_ids do not fit each other");
    if (int8 && (in->k_scale.elements != kv_width || in->v_scale.elements != kv_width))
        return BAD("k_scale and v_scale must have one number a channel, kv_num_heads times head_size");
    const int64_t longest = *(const int32_t *)in->total.data;
    for (int64_t b = 0; b < batch; b++) {
        const int64_t behind = tokens == longest ? 0 : ((const int32_t *)in->last.data)[b] + 1 - tokens;
        if (behind < 0 || behind + tokens > longest)
            return BAD("seqlens_k does not fit total_sequence_length");
    }
    for (int64_t i = 0; rotary && i < batch * tokens; i++) {
        const int64_t at = ((const int64_t *)in->positions.data)[i];
        if (at < 0 || at >= in->cos.dims[0])
            return BAD("a position is beyond the rotary table");
    }
    *p = (AttentionParameters){
        .rotary = rotary, .batch = batch, .tokens = tokens, .kv_heads = s->kv_heads, .group = group, .window = s->window,
        .capacity = past->dims[2] > longest ? past->dims[2] : longest, .cos = in->cos.data, .sin = in->sin.data,
        .k_scales = in->k_scale.data, .v_scales = in->v_scale.data, .splits = (longest + SPLIT - 1) / SPLIT,
        .scale.value = s->scale};
    return NULL;
}

/* Outputs 1 and 2, the caches; sets their addresses in ``p``. */
static Status *present_caches(const AttentionState *s, Context *context, const AttentionInputs *in, AttentionParameters *p) {
    const int64_t row_bytes = s->size * (s->int8 ? 1 : 4);
    TRY(present_of(context, 1, &in->past_key, p->capacity, row_bytes, &p->keys));
    return present_of(context, 2, &in->past_value, p->capacity, row_bytes, &p->values);
}

/* Plan the work; sizes and caches in ``p`` are already set. */
static void plan_attention(const AttentionState *s, const Attention *found, const AttentionInputs *in, void *y, Room *memory,
                           Job *job, AttentionParameters *p) {
    const int64_t size = s->size, width = s->heads * size, kv_width = s->kv_heads * size, query_bytes = s->int8 ? QUERY_BYTES(size) : size * 4;
    const int64_t batch = p->batch, tokens = p->tokens, longest = *(const int32_t *)in->total.data;
    const int split = in->k.data != NULL;
    p->q_in = in->q.data;
    p->k_in = split ? in->k.data : p->q_in + width * 4;
    p->v_in = split ? in->v.data : p->k_in + kv_width * 4;
    p->q_stride = (split ? width : width + 2 * kv_width) * 4;
    p->k_stride = p->v_stride = split ? kv_width * 4 : p->q_stride;
    p->y = y;

    const int64_t rows = tokens * p->group, heads = batch * s->kv_heads;
    const int64_t most_rows = s->int8 ? INT8_ROWS : FLOAT_ROWS, row_parts = (rows + most_rows - 1) / most_rows;
    /* Many rows: each part has a few rows over all keys. Few rows: each part has all rows over one split, joined in order. */
    const int apart = p->splits > 1 && heads * row_parts < 16;
    p->rows_per_part = apart ? rows : most_rows;
    p->row_parts = apart ? 1 : row_parts;
    p->split_parts = apart ? p->splits : 1;
    int64_t *const past = room(memory, batch * 8), *const where = room(memory, batch * tokens * 8);
    p->past = past;
    p->positions = p->rotary ? in->positions.data : where;
    p->q = room(memory, batch * tokens * s->heads * query_bytes);
    p->partials = room(memory, apart ? heads * rows * p->splits * (size + 16) * 4 : 0);
    if (memory->base) {
        for (int64_t b = 0; b < batch; b++) past[b] = tokens == longest ? 0 : ((const int32_t *)in->last.data)[b] + 1 - tokens;
        for (int64_t i = 0; i < batch * tokens; i++) where[i] = 0;
    }
    add_work(job, found->append, p, batch * tokens);
    add_work(job, found->attend, p, heads * p->row_parts * p->split_parts);
    if (apart) add_work(job, found->combine, p, heads);
}

typedef struct AttentionCall {
    const AttentionState *state;
    const Attention *found;
    AttentionInputs in;
    void *y;
    AttentionParameters parameters;
} AttentionCall;

static void plan_attention_call(void *of, Room *memory, Job *job) {
    AttentionCall *const call = of;
    plan_attention(call->state, call->found, &call->in, call->y, memory, job, &call->parameters);
}

static Status *attention_compute(void *state, Context *context) {
    const AttentionState *s = state;
    const int int8 = s->int8;
    AttentionCall call = {.state = s};
    AttentionInputs *const in = &call.in;
    AttentionParameters *const p = &call.parameters;
    Tensor *const all[] = {&in->q,     &in->k,   &in->v,   &in->past_key,  &in->past_value, &in->last,
                           &in->total, &in->cos, &in->sin, &in->positions, &in->k_scale,    &in->v_scale};
    _Static_assert(sizeof all / sizeof *all == INT8_ATTENTION_INPUTS, "all inputs are read");
    for (size_t i = 0; i < (int8 ? INT8_ATTENTION_INPUTS : ATTENTION_INPUTS); i++)
        TRY(read_input(context, i, type_of_input(int8, i), SAY("an input is of the wrong type"), all[i]));
    TRY(find_attention(s, in, &call.found, p));
    Value *y = NULL;
    const int64_t y_dims[3] = {p->batch, p->tokens, s->heads * s->size};
    TRY(output(context, 0, y_dims, 3, &y));
    TRY(present_caches(s, context, in, p));
    if (!p->batch || !p->tokens) return NULL;
    TRY(tensor_data(y, &call.y));
    return run_planned(context, plan_attention_call, &call);
}

#define AN_ATTENTION { \
    OPERATOR_ON_CPU(one), .name = attention_name, \
    .input_type = attention_input_type, .input_count = attention_inputs, .input_kind = attention_input_kind, \
    .output_type = attention_output_type, .output_count = attention_outputs, \
    .create_v2 = attention_create, .compute_v2 = attention_compute \
}
static const CustomOp ATTENTION = AN_ATTENTION;
static const CustomOp INT8_ATTENTION = AN_ATTENTION; /* the same functions, which check the operator at run time */
