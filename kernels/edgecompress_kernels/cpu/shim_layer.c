/* ---- DecoderLayer and DecoderLayerInt8: a run of a decoder's operators as one job ----
 *
 * Inputs 0 to 8 are what the cache's operators take, but for the query; 9 is the program, int64 [steps + 1, FIELDS]; the
 * others are values of the program, in order: what it starts from, weights, scales. Values beyond them are rows of
 * float32 that steps make; the last of them is output 0. */

enum { PAST_KEY, PAST_VALUE, LAST, TOTAL, COS, SIN, POSITIONS, LAYER_K_SCALE, LAYER_V_SCALE, PROGRAM, VALUES };
enum { FIELDS = 12, MOST_VALUES = 64, MOST_STEPS = 20 };
enum { STEP_NORM = 1, STEP_ADD, STEP_GATE, STEP_MATMUL, STEP_ATTENTION }; /* as compile writes them */

typedef struct RowsParameters { /* rows.SLOTS */
    void *x, *other, *y;
    int64_t width, columns;
    union {
        float value;
        int64_t slot;
    } constant;
} RowsParameters;

extern void add_rows(void *, size_t), normalize_rows(void *, size_t), gate_rows(void *, size_t);

typedef struct Layer { /* a call */
    const AttentionState *state;
    void *y;
    const int64_t *program;
    int64_t inputs, values, steps;
    int64_t batch, tokens;
    Tensor value[MOST_VALUES];
    const Attention *attention;
    AttentionInputs attended;
    AttentionParameters attending;
    const Matmul *matmuls[MOST_STEPS];
    MatmulInputs multiplied[MOST_STEPS];
    union {
        RowsParameters rows;
        MatmulParameters matmul;
    } of[MOST_STEPS];
} Layer;

static const CustomOp INT8_LAYER;
static const char *decoder_layer_name(const CustomOp *op) { return op == &INT8_LAYER ? "DecoderLayerInt8" : "DecoderLayer"; }
static size_t decoder_layer_inputs(const CustomOp *op) { return VALUES + 1; }
static int decoder_layer_input_kind(const CustomOp *op, size_t index) {
    return index == VALUES ? VARIADIC : index >= COS && index <= LAYER_V_SCALE ? OPTIONAL : REQUIRED;
}
static int type_of_layer_input(int int8, size_t index) {
    if (index == VALUES) return 0;
    if (index == PAST_KEY || index == PAST_VALUE) return int8 ? INT8 : FLOAT;
    return index == LAST || index == TOTAL ? INT32 : index == POSITIONS || index == PROGRAM ? INT64 : FLOAT;
}
static int decoder_layer_input_type(const CustomOp *op, size_t index) { return type_of_layer_input(op == &INT8_LAYER, index); }
static int decoder_layer_output_type(const CustomOp *op, size_t index) {
    return index && op == &INT8_LAYER ? INT8 : FLOAT;
}
static int no(const CustomOp *op) { return 0; }

#define WRONG(text) create_status(INVALID_ARGUMENT, "edgecompress DecoderLayer: " text)

typedef struct LayerState {
    AttentionState attention;
    Tensor constants[VALUES + MOST_VALUES]; /* by input: asking ONNX Runtime for each at each call takes longer than a norm */
} LayerState;

static Status *decoder_layer_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    LayerState *made;
    size_t inputs = 0;
    TRY(input_names(info, &inputs));
    TRY(state_of(sizeof *made, state));
    made = *state;
    TRY(read_attention(op == &INT8_LAYER, info, &made->attention));
    for (size_t i = 0; i < sizeof made->constants / sizeof *made->constants; i++) {
        const Value *value = NULL;
        int constant = 0;
        if (i < inputs) TRY(constant_input(info, i, &constant, &value));
        TRY(describe(constant ? value : NULL, &made->constants[i]));
    }
    return NULL;
}

static Status *read_layer_input(const LayerState *state, Context *context, size_t index, Tensor *tensor) {
    if (!state->constants[index].type) return read_any(context, index, tensor);
    *tensor = state->constants[index];
    return NULL;
}


/* What a step reads and makes; every number of a value is checked here, once. */
static Status *check_step(const AttentionState *s, Layer *layer, int64_t i) {
    const int64_t *const step = layer->program + (i + 1) * FIELDS;
    const int reads = step[0] == STEP_MATMUL ? 5 : step[0] == STEP_NORM || step[0] == STEP_ADD ? 2 : 1;
    if (step[0] < STEP_NORM || step[0] > STEP_ATTENTION) return WRONG("a step of another kind");
    for (int j = 0; j < reads; j++)
        if (step[2 + j] >= layer->values || (step[2 + j] < 0 ? j < 3 : !layer->value[step[2 + j]].type))
            return WRONG("a step reads a value that is not there");
    if (step[1] < layer->inputs || step[1] >= layer->values || layer->value[step[1]].type)
        return WRONG("a step makes a value that is not its own");
    const Tensor *const x = &layer->value[step[2]];
    if (x->type != FLOAT || x->rank != 3 || x->dims[0] != layer->batch || x->dims[1] != layer->tokens)
        return WRONG("a step's rows are not those of the tokens");
    int64_t width = x->dims[2];
    const Tensor *const other = reads > 1 ? &layer->value[step[3]] : x;
    if (step[0] == STEP_NORM && (other->type != FLOAT || other->elements != width)) return WRONG("a norm's weight is of another width");
    if (step[0] == STEP_ADD && (other->type != FLOAT || other->elements != x->elements)) return WRONG("what is added is of another width");
    if (step[0] == STEP_GATE) width /= 2;
    if (step[0] == STEP_MATMUL) {
        static const Tensor none;
        const MatmulState state = {step[7], step[8], step[9], step[10]};
        const Tensor *const zeros = step[5] < 0 ? &none : &layer->value[step[5]], *const bias = step[6] < 0 ? &none : &layer->value[step[6]];
        if (state.block < 1 || state.inputs < 1 || state.outputs < 1 || state.inputs % state.block) return WRONG("a product of no size");
        layer->multiplied[i] = (MatmulInputs){*x, *other, layer->value[step[4]], *zeros, *bias};
        TRY(find_matmul(&state, &layer->multiplied[i], &layer->matmuls[i]));
        width = state.outputs;
    }
    if (step[0] == STEP_ATTENTION) {
        if (layer->attention) return WRONG("more than one attention");
        layer->attended.q = *x;
        TRY(find_attention(s, &layer->attended, &layer->attention, &layer->attending));
        width = s->heads * s->size;
    }
    if (width < 16 || width % 16) return WRONG("a width that is no multiple of sixteen");
    layer->value[step[1]] = (Tensor){NULL, {layer->batch, layer->tokens, width}, 3, layer->batch * layer->tokens * width, FLOAT};
    return NULL;
}

static void plan_layer(void *call, Room *memory, Job *job) {
    Layer *const layer = call;
    const int64_t rows = layer->batch * layer->tokens;
    for (int64_t v = layer->inputs; v < layer->values; v++) {
        Tensor *const value = &layer->value[v];
        value->data = v == layer->values - 1 ? layer->y : room(memory, value->elements * 4);
    }
    for (int64_t i = 0; i < layer->steps; i++) {
        const int64_t *const step = layer->program + (i + 1) * FIELDS;
        void *const made = layer->value[step[1]].data, *const x = layer->value[step[2]].data;
        if (step[0] == STEP_MATMUL) {
            const MatmulState state = {step[7], step[8], step[9], step[10]};
            layer->multiplied[i].x.data = x;
            plan_matmul(&state, layer->matmuls[i], &layer->multiplied[i], made, memory, job, &layer->of[i].matmul);
        } else if (step[0] == STEP_ATTENTION) {
            layer->attended.q.data = x;
            plan_attention(layer->state, layer->attention, &layer->attended, made, memory, job, &layer->attending);
        } else {
            RowsParameters *const p = &layer->of[i].rows;
            const int64_t width = layer->value[step[1]].dims[2];
            const int64_t columns = step[0] == STEP_NORM ? width : columns_of_part(rows, width);
            *p = (RowsParameters){x, step[0] == STEP_GATE ? NULL : layer->value[step[3]].data, made, width, columns, {.slot = step[11]}};
            const Kernel run = step[0] == STEP_NORM ? normalize_rows : step[0] == STEP_ADD ? add_rows : gate_rows;
            add_row_work(job, run, p, rows, width, columns);
        }
    }
}

static Status *decoder_layer_compute(void *state, Context *context) {
    const LayerState *const kept = state;
    const AttentionState *const s = &kept->attention;
    Layer layer;
    Tensor program;
    Tensor *const fixed[] = {&layer.attended.past_key, &layer.attended.past_value, &layer.attended.last,
                             &layer.attended.total, &layer.attended.cos, &layer.attended.sin,
                             &layer.attended.positions, &layer.attended.k_scale, &layer.attended.v_scale, &program};
    for (size_t i = 0; i < VALUES; i++) {
        TRY(read_layer_input(kept, context, i, fixed[i]));
        if (fixed[i]->type && fixed[i]->type != type_of_layer_input(s->int8, i)) return WRONG("an input is of the wrong type");
    }
    layer.attended.k.data = layer.attended.v.data = NULL;
    layer.attention = NULL;
    layer.state = s;
    layer.program = program.data;
    layer.steps = program.elements / FIELDS - 1;
    if (program.rank != 2 || program.dims[1] != FIELDS || layer.steps < 1 || layer.steps > MOST_STEPS)
        return WRONG("the program is not [2 to 21, 12]");
    layer.inputs = layer.program[0], layer.values = layer.program[1];
    if (layer.inputs < 1 || layer.values <= layer.inputs || layer.values > MOST_VALUES) return WRONG("the program has too many values");
    for (int64_t i = 0; i < layer.inputs; i++) TRY(read_layer_input(kept, context, VALUES + i, &layer.value[i]));
    for (int64_t i = layer.inputs; i < layer.values; i++) layer.value[i].type = 0;
    if (layer.value[0].rank != 3) return WRONG("the first value must be rows [B, T, width]");
    layer.batch = layer.value[0].dims[0], layer.tokens = layer.value[0].dims[1];
    for (int64_t i = 0; i < layer.steps; i++) TRY(check_step(s, &layer, i));
    const Tensor *const last = &layer.value[layer.values - 1];
    if (!layer.attention || !last->type) return WRONG("the program has no attention, or makes no output");

    Value *y = NULL;
    TRY(output(context, 0, last->dims, 3, &y));
    TRY(present_caches(s, context, &layer.attended, &layer.attending));
    if (!layer.batch || !layer.tokens) return NULL;
    TRY(tensor_data(y, &layer.y));
    return run_planned(context, plan_layer, &layer);
}

#define A_DECODER_LAYER { \
    .version = API_VERSION, .name = decoder_layer_name, .provider = on_cpu, \
    .input_type = decoder_layer_input_type, .input_count = decoder_layer_inputs, .input_kind = decoder_layer_input_kind, \
    .output_type = decoder_layer_output_type, .output_count = attention_outputs, .output_kind = kind_required, \
    .input_memory = memory_default, .variadic_input_min = one, .variadic_input_same = no, \
    .variadic_output_min = one, .variadic_output_same = one, \
    .create_v2 = decoder_layer_create, .compute_v2 = decoder_layer_compute, .destroy = destroy, \
    .first_version = one, .last_version = any_version \
}
static const CustomOp DECODER_LAYER = A_DECODER_LAYER;
static const CustomOp INT8_LAYER = A_DECODER_LAYER;
