/* ---- DecoderLayer and DecoderLayerInt8: a sequence of a decoder's operators as one job ----
 *
 * Inputs 0 to 8 are the attention operators' inputs without the query; 9 is the program, int64 [steps + 1, FIELDS]; the
 * others are values of the program, in order: its inputs, weights, scales. Further values are float32 rows that steps
 * write; the last one is output 0. */

#include "shim.h"

typedef struct Layer { /* one call */
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

static const char *decoder_layer_name(const CustomOp *op) {
    return op == &INT8_DECODER_LAYER ? INT8_DECODER_LAYER_NAME : DECODER_LAYER_NAME;
}
static size_t decoder_layer_inputs(const CustomOp *op) { return DECODER_LAYER_INPUTS; }
static int decoder_layer_input_kind(const CustomOp *op, size_t index) {
    const int optional = index >= DECODER_LAYER_COS && index <= DECODER_LAYER_V_SCALE;
    return index == DECODER_LAYER_VALUES ? VARIADIC : optional ? OPTIONAL : REQUIRED;
}
static int type_of_layer_input(int int8, size_t index) {
    if (index == DECODER_LAYER_VALUES) return ANY;
    if (index == DECODER_LAYER_PAST_KEY || index == DECODER_LAYER_PAST_VALUE) return int8 ? INT8 : FLOAT;
    const int length = index == DECODER_LAYER_LAST || index == DECODER_LAYER_TOTAL;
    return length ? INT32 : index == DECODER_LAYER_POSITIONS || index == DECODER_LAYER_PROGRAM ? INT64 : FLOAT;
}
static int decoder_layer_input_type(const CustomOp *op, size_t index) {
    return type_of_layer_input(op == &INT8_DECODER_LAYER, index);
}
static int decoder_layer_output_type(const CustomOp *op, size_t index) {
    return index && op == &INT8_DECODER_LAYER ? INT8 : FLOAT;
}

#define WRONG(text) create_status(INVALID_ARGUMENT, "edgecompress DecoderLayer: " text)

typedef struct LayerState {
    AttentionState attention;
    Tensor constants[DECODER_LAYER_VALUES + MOST_VALUES]; /* by input: querying ONNX Runtime for each at each call takes longer than a norm */
} LayerState;

static Status *decoder_layer_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    LayerState *made;
    size_t inputs = 0;
    TRY(input_names(info, &inputs));
    TRY(state_of(sizeof *made, state));
    made = *state;
    TRY(read_attention(op == &INT8_DECODER_LAYER, info, &made->attention));
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


static MatmulState state_of_step(const int64_t *step) {
    return (MatmulState){.inputs = step[FIELD_INPUTS], .outputs = step[FIELD_OUTPUTS], .bits = step[FIELD_BITS],
                         .block = step[FIELD_BLOCK]};
}

/* A step's inputs and output; all value indices are checked here. */
static Status *check_step(const AttentionState *s, Layer *layer, int64_t i) {
    const int64_t *const step = layer->program + (i + 1) * FIELDS;
    const int reads = step[FIELD_KIND] == STEP_MATMUL ? 5 : step[FIELD_KIND] == STEP_NORM || step[FIELD_KIND] == STEP_ADD ? 2 : 1;
    if (step[FIELD_KIND] < STEP_NORM || step[FIELD_KIND] > STEP_ATTENTION) return WRONG("a step of another kind");
    for (int j = 0; j < reads; j++)
        if (step[FIELD_X + j] >= layer->values || (step[FIELD_X + j] < 0 ? j < 3 : !layer->value[step[FIELD_X + j]].type))
            return WRONG("a step reads a value that is not there");
    if (step[FIELD_MADE] < layer->inputs || step[FIELD_MADE] >= layer->values || layer->value[step[FIELD_MADE]].type)
        return WRONG("a step makes a value that is not its own");
    const Tensor *const x = &layer->value[step[FIELD_X]];
    if (x->type != FLOAT || x->rank != 3 || x->dims[0] != layer->batch || x->dims[1] != layer->tokens)
        return WRONG("a step's rows are not those of the tokens");
    int64_t width = x->dims[2];
    const Tensor *const other = reads > 1 ? &layer->value[step[FIELD_OTHER]] : x;
    if (step[FIELD_KIND] == STEP_NORM && (other->type != FLOAT || other->elements != width)) return WRONG("a norm's weight is of another width");
    if (step[FIELD_KIND] == STEP_ADD && (other->type != FLOAT || other->elements != x->elements)) return WRONG("what is added is of another width");
    if (step[FIELD_KIND] == STEP_GATE) width /= 2;
    if (step[FIELD_KIND] == STEP_MATMUL) {
        static const Tensor none;
        const MatmulState state = state_of_step(step);
        const Tensor *const zeros = step[FIELD_ZEROS] < 0 ? &none : &layer->value[step[FIELD_ZEROS]], *const bias = step[FIELD_BIAS] < 0 ? &none : &layer->value[step[FIELD_BIAS]];
        if (state.block < 1 || state.inputs < 1 || state.outputs < 1 || state.inputs % state.block) return WRONG("a product of no size");
        layer->multiplied[i] = (MatmulInputs){*x, *other, layer->value[step[FIELD_SCALES]], *zeros, *bias};
        TRY(find_matmul(&state, &layer->multiplied[i], &layer->matmuls[i]));
        width = state.outputs;
    }
    if (step[FIELD_KIND] == STEP_ATTENTION) {
        if (layer->attention) return WRONG("more than one attention");
        layer->attended.q = *x;
        TRY(find_attention(s, &layer->attended, &layer->attention, &layer->attending));
        width = s->heads * s->size;
    }
    if (width < 16 || width % 16) return WRONG("a width that is no multiple of sixteen");
    layer->value[step[FIELD_MADE]] = (Tensor){NULL, {layer->batch, layer->tokens, width}, 3, layer->batch * layer->tokens * width, FLOAT};
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
        void *const made = layer->value[step[FIELD_MADE]].data, *const x = layer->value[step[FIELD_X]].data;
        if (step[FIELD_KIND] == STEP_MATMUL) {
            const MatmulState state = state_of_step(step);
            layer->multiplied[i].x.data = x;
            plan_matmul(&state, layer->matmuls[i], &layer->multiplied[i], made, memory, job, &layer->of[i].matmul);
        } else if (step[FIELD_KIND] == STEP_ATTENTION) {
            layer->attended.q.data = x;
            plan_attention(layer->state, layer->attention, &layer->attended, made, memory, job, &layer->attending);
        } else {
            RowsParameters *const p = &layer->of[i].rows;
            const int64_t width = layer->value[step[FIELD_MADE]].dims[2];
            const int64_t columns = step[FIELD_KIND] == STEP_NORM ? width : columns_of_part(rows, width);
            *p = (RowsParameters){
                .x = x, .other = step[FIELD_KIND] == STEP_GATE ? NULL : layer->value[step[FIELD_OTHER]].data, .y = made,
                .width = width, .columns = columns, .constant.slot = step[FIELD_CONSTANT]};
            const Kernel run = step[FIELD_KIND] == STEP_NORM ? normalize_rows : step[FIELD_KIND] == STEP_ADD ? add_rows : gate_rows;
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
    _Static_assert(sizeof fixed / sizeof *fixed == DECODER_LAYER_VALUES, "all inputs are read");
    for (size_t i = 0; i < DECODER_LAYER_VALUES; i++) {
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
    for (int64_t i = 0; i < layer.inputs; i++) TRY(read_layer_input(kept, context, DECODER_LAYER_VALUES + i, &layer.value[i]));
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
    OPERATOR_ON_CPU(no), .name = decoder_layer_name, \
    .input_type = decoder_layer_input_type, .input_count = decoder_layer_inputs, .input_kind = decoder_layer_input_kind, \
    .output_type = decoder_layer_output_type, .output_count = attention_outputs, \
    .create_v2 = decoder_layer_create, .compute_v2 = decoder_layer_compute \
}
static const CustomOp DECODER_LAYER = A_DECODER_LAYER;
static const CustomOp INT8_DECODER_LAYER = A_DECODER_LAYER;
