// As much of CUDA as csrc/src/gpu.cu uses, on a CPU: g++ takes this header for the real one. Threads of a block take
// turns on stacks of their own; a barrier is the end of a turn, so every thread of a warp, or of the block, has come to
// it before any goes on. One block runs after the other. Not for speed, and no data race will show.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = struct EmulatedStream *;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t status) { return status ? "invalid argument" : "no error"; }

namespace emulation {

constexpr size_t kStackBytes = 128 << 10;
enum class State { kNew, kWaiting, kDone };
struct Thread {
  ucontext_t context;
  jmp_buf turn;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  State state = State::kDone;
};
inline thread_local std::vector<Thread> threads;
inline thread_local jmp_buf scheduler;
inline thread_local unsigned current;
inline thread_local dim3 block_index;
inline thread_local void (*body)(const void *);
inline thread_local const void *bound;

struct ThreadIndex {
  struct {
    operator unsigned() const { return current; }
  } x;
};

inline void run_body() {
  body(bound);
  threads[current].state = State::kDone;
  _longjmp(scheduler, 1);
}

inline void end_turn() {
  threads[current].state = State::kWaiting;
  if (!_setjmp(threads[current].turn)) _longjmp(scheduler, 1);
}

// Comes back when the thread ends its turn. Contexts only begin a stack: going on by jumps takes no system call.
[[gnu::noinline]] inline void give_turn(Thread &thread) {
  if (_setjmp(scheduler)) return;
  if (thread.state == State::kNew) setcontext(&thread.context);
  _longjmp(thread.turn, 1);
}

inline void run_block(unsigned count) {
  while (threads.size() < count) threads.emplace_back();
  for (unsigned t = 0; t < count; ++t) {
    Thread &thread = threads[t];
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_body, 0);
    thread.state = State::kNew;
  }
  for (bool any = true; any;) {
    any = false;
    for (current = 0; current < count; ++current) {
      if (threads[current].state == State::kDone) continue;
      give_turn(threads[current]);
      any = true;
    }
  }
}

template <class Kernel, class... Parameters, size_t... kIndex>
void bind(Kernel kernel, void (*)(Parameters...), void **arguments, std::index_sequence<kIndex...>, dim3 grid, unsigned count) {
  const auto call = [&] { kernel(*static_cast<Parameters *>(arguments[kIndex])...); };
  body = [](const void *what) { (*static_cast<const decltype(call) *>(what))(); };
  bound = &call;
  for (block_index.y = 0; block_index.y < grid.y; ++block_index.y)
    for (block_index.x = 0; block_index.x < grid.x; ++block_index.x) run_block(count);
}

}  // namespace emulation

inline thread_local emulation::ThreadIndex threadIdx;
#define blockIdx emulation::block_index

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void **arguments, size_t, cudaStream_t) {
  emulation::bind(kernel, kernel, arguments, std::index_sequence_for<Parameters...>(), grid, block.x);
  return cudaSuccess;
}

inline void __syncthreads() { emulation::end_turn(); }
inline void __syncwarp() { emulation::end_turn(); }

template <class T>
T __ldcs(const T *from) {
  return *from;
}
template <class T>
void __stcs(T *to, T value) {
  *to = value;
}

template <class To, class From>
To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(uint32_t v) { return emulated_bits<float>(v); }
inline uint32_t __float_as_uint(float v) { return emulated_bits<uint32_t>(v); }
inline double __longlong_as_double(long long v) { return emulated_bits<double>(v); }
inline long long __double_as_longlong(double v) { return emulated_bits<long long>(v); }
inline float __double2float_rn(double v) { return static_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
