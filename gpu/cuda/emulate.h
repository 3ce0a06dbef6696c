// Runs CUDA kernels on a processor, for tests: a block's threads are fibers that take turns, and stop at each shuffle and
// barrier until those they wait for are there. A shuffle or a barrier that some never reach ends the program.
#pragma once
#define EMULATED
#define __global__
#define __device__
#define __shared__ static

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

struct Index {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct __half {
    uint16_t bits;
};
struct __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float widened(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float widened(__half x) {
    const int sign = x.bits >> 15, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent   ? std::ldexp(float(1024 + fraction), exponent - 25)
                               : std::ldexp(float(fraction), -24);
    return sign ? -value : value;
}

inline float2 __half22float2(__half2 both) { return {widened(both.x), widened(both.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 both) { return {widened(both.x), widened(both.y)}; }

static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {
enum class Waits { Nothing, Warp, Block, Ended };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    Waits waits;
    unsigned shuffles;
};
static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<float> shuffled[2];
static ucontext_t scheduler;
static std::function<void()> kernel;

inline Fiber &current() { return *fibers[threadIdx.x]; }

inline void wait(Waits waits) {
    Fiber &fiber = current();
    const unsigned thread = threadIdx.x;
    fiber.waits = waits;
    swapcontext(&fiber.context, &scheduler);
    threadIdx.x = thread;
}

inline void body() {
    kernel();
    current().waits = Waits::Ended;
    swapcontext(&current().context, &scheduler);
}

// All threads of [first, last) that have not ended wait for `waits`: they go on.
inline bool release(unsigned first, unsigned last, Waits waits) {
    bool any = false;
    for (unsigned t = first; t < last; ++t) {
        if (fibers[t]->waits != waits && fibers[t]->waits != Waits::Ended) return false;
        any |= fibers[t]->waits == waits;
    }
    for (unsigned t = first; t < last; ++t) {
        if (fibers[t]->waits == waits) fibers[t]->waits = Waits::Nothing;
    }
    return any;
}

inline void block(unsigned threads, bool backwards) {
    while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
    for (auto &buffer : shuffled) buffer.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
        Fiber &fiber = *fibers[t];
        fiber.waits = Waits::Nothing;
        fiber.shuffles = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, body, 0);
    }
    for (;;) {
        bool ran = false;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned t = backwards ? threads - 1 - i : i;
            if (fibers[t]->waits != Waits::Nothing) continue;
            ran = true;
            threadIdx = {t, 0, 0};
            swapcontext(&scheduler, &fibers[t]->context);
        }
        for (unsigned t = 0; t < threads; t += 32) ran |= release(t, std::min(t + 32, threads), Waits::Warp);
        ran |= release(0, threads, Waits::Block);
        if (std::all_of(fibers.begin(), fibers.begin() + threads, [](auto &f) { return f->waits == Waits::Ended; })) return;
        if (!ran) {
            std::fprintf(stderr, "threads wait for others that never come\n");
            std::exit(2);
        }
    }
}

// Every other block runs its threads backwards: what forgets a barrier is seen.
inline void launch(Index grid, unsigned threads, std::function<void()> run) {
    kernel = std::move(run);
    gridDim = grid;
    blockDim = {threads, 1, 1};
    unsigned count = 0;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                block(threads, count++ % 2);
            }
}
} // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::Waits::Block); }

inline float __shfl_xor_sync(unsigned, float x, int lanes) {
    emulated::Fiber &fiber = emulated::current();
    auto &buffer = emulated::shuffled[fiber.shuffles++ % 2];
    buffer[threadIdx.x] = x;
    emulated::wait(emulated::Waits::Warp);
    return buffer[threadIdx.x ^ unsigned(lanes)];
}
