// The attention kernels as a program: a problem on standard input, the attended values on standard output. src/emulated.rs
// compiles it and says in which order things come.
#include "emulate.h"

#include "attention.cu"

template <typename T> std::vector<T> take(size_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, stdin) != count) std::exit(3);
    return values;
}

template <typename T, int PAIRS> void run(const std::vector<unsigned> &head, const std::vector<float> &numbers) {
    const unsigned rows = head[2], heads = head[3], kv_heads = head[4], head_dim = head[5], splits = head[6];
    auto queries = take<float>(size_t(rows) * heads * head_dim);
    auto cache = take<T>(size_t(head[7]) * 2 * kv_heads * head_dim);
    auto meta = take<unsigned>(head[8]);
    std::vector<float> parts(size_t(rows) * heads * splits * (head_dim + 2), NAN), out(size_t(rows) * heads * head_dim, NAN);
    const unsigned chunks = (heads / kv_heads + GROUP - 1) / GROUP;
    emulated::launch({rows, kv_heads * chunks, splits}, 32 * WARPS, [&] {
        attend<T, PAIRS>(queries.data(), cache.data(), reinterpret_cast<const Row *>(meta.data()), meta.data() + 3 * rows,
                         parts.data(), heads, kv_heads, head_dim, numbers[0], numbers[1]);
    });
    emulated::launch({rows, heads, 1}, 32 * WARPS, [&] { join(parts.data(), out.data(), head_dim, splits); });
    std::fwrite(out.data(), sizeof(float), out.size(), stdout);
}

template <typename T> void of(const std::vector<unsigned> &head, const std::vector<float> &numbers) {
    switch (head[1]) {
    case 64: return run<T, 1>(head, numbers);
    case 128: return run<T, 2>(head, numbers);
    default: return run<T, 4>(head, numbers);
    }
}

int main() {
    // Type, width of the kernel, rows, heads, key heads, head_dim, splits, slots, numbers of rows and pages; scale and cap.
    auto head = take<unsigned>(9);
    auto numbers = take<float>(2);
    switch (head[0]) {
    case 0: of<float>(head, numbers); break;
    case 1: of<__half>(head, numbers); break;
    default: of<__nv_bfloat16>(head, numbers); break;
    }
}
