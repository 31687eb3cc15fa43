// What libtorch has and tch lacks, as C functions.
//
// Every function catches: a C++ exception that reached Rust would abort the process. A function
// that can fail returns 0 for success and -1 for failure, or a null pointer; the reason is then in
// gan_last_error(), which belongs to the calling thread. Tensors come in as tch's `C_tensor`, which
// is an at::Tensor; a tensor that goes out is owned by the caller. No CUDA header is needed.

#include "guarded.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Version.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/version.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <string>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sys/resource.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

using gan::guarded;
using gan::last_error;

extern "C" {

const char* gan_last_error() { return last_error.c_str(); }

// Deterministic: the same bits from run to run, for no kernel adds in an order of its own and none is
// chosen by timing. Fresh memory is left alone: filling it is for finding bugs, and costs time.
int gan_set_rules(int deterministic, int tf32) {
  return guarded(-1, [&] {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    context.setDeterministicFillUninitializedMemory(false);
    context.setDeterministicCuDNN(deterministic);
    context.setDeterministicMkldnn(deterministic);
    context.setBenchmarkCuDNN(!deterministic);
    // On a CPU there is no TF32, and asking makes libtorch warn of that.
    if (at::hasCUDA()) {
      context.setAllowTF32CuDNN(tf32);
      context.setAllowTF32CuBLAS(tf32);
    }
    return 0;
  });
}

// Freed memory stays with the process, all of it in one arena: one of a thread's own would be given
// back whenever it is empty.
void gan_keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
}

// The calling thread, and those that it starts from now on, run when nobody else wants to. Linux has
// a priority a thread; elsewhere this would be the whole process's, and nothing is done.
void gan_lower_priority() {
#if defined(__linux__)
  setpriority(PRIO_PROCESS, 0, 19);
#endif
}

// A generator of its own; `cuda` is the index of a CUDA device, or -1 for the CPU.
void* gan_generator_new(int cuda, uint64_t seed) {
  return guarded<void*>(nullptr, [&]() -> void* {
    at::Generator generator = cuda < 0
        ? at::make_generator<at::CPUGeneratorImpl>(seed)
        : at::detail::getCUDAHooks().getNewGenerator(static_cast<c10::DeviceIndex>(cuda));
    generator.set_current_seed(seed);
    return new at::Generator(std::move(generator));
  });
}

void gan_generator_free(void* generator) {
  guarded(0, [&] {
    delete static_cast<at::Generator*>(generator);
    return 0;
  });
}

int gan_normal_(at::Tensor* tensor, double mean, double deviation, void* generator) {
  return guarded(-1, [&] {
    at::NoGradGuard no_grad;
    tensor->normal_(mean, deviation, *static_cast<at::Generator*>(generator));
    return 0;
  });
}

int gan_channels_last(at::Tensor* tensor, at::Tensor** out) {
  return guarded(-1, [&] {
    *out = new at::Tensor(tensor->contiguous(at::MemoryFormat::ChannelsLast));
    return 0;
  });
}

int gan_is_channels_last(at::Tensor* tensor) {
  return guarded(-1, [&] {
    return tensor->is_contiguous(at::MemoryFormat::ChannelsLast) ? 1 : 0;
  });
}

// In place: `tensor` becomes its own leaky ReLU, and autograd knows.
int gan_leaky_relu_(at::Tensor* tensor, double slope) {
  return guarded(-1, [&] {
    at::leaky_relu_(*tensor, slope);
    return 0;
  });
}

// Adam on one flat tensor, all in one pass; `count`, on the tensor's device, counts steps from 1, and
// `rate`, there too, is the step size.
int gan_adam_(at::Tensor* parameters, at::Tensor* gradients, at::Tensor* mean, at::Tensor* square,
              at::Tensor* count, at::Tensor* rate, double beta1, double beta2, double epsilon) {
  return guarded(-1, [&] {
    at::NoGradGuard no_grad;
    at::_fused_adam_({*parameters}, {*gradients}, {*mean}, {*square}, {}, {*count}, *rate,
                     beta1, beta2, /*weight_decay=*/0.0, epsilon, /*amsgrad=*/false, /*maximize=*/false);
    return 0;
  });
}

// Bytes of a GPU's memory that nobody has taken, libtorch's own unused ones not counted, and all.
int gan_free_memory(int cuda, uint64_t* free, uint64_t* total) {
  return guarded(-1, [&] {
    TORCH_CHECK(cuda >= 0 && cuda <= 127, "there is no GPU ", cuda);
    auto [unused, all] =
        c10::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(cuda));
    *free = unused;
    *total = all;
    return 0;
  });
}

// Whether nothing but this handle can reach the tensor's memory: 1, 0, or -1.
int gan_is_sole_owner(at::Tensor* tensor) {
  return guarded(-1, [&] {
    return tensor->use_count() == 1 && tensor->storage().use_count() == 1 ? 1 : 0;
  });
}

const char* gan_libtorch_version() { return TORCH_VERSION; }

// The processor as far as it decides which kernels run: the vector instructions that libtorch
// dispatches on, and the vendor, family and model that oneDNN and MKL look at.
const char* gan_processor() {
  return guarded<const char*>(nullptr, [] {
    static thread_local std::string text;
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    std::string vendor = "x86-64";
    unsigned family = 0, model = 0;
    if (__get_cpuid(0, &a, &b, &c, &d)) {
      vendor.clear();
      for (unsigned word : {b, d, c}) {
        for (int byte = 0; byte < 4; byte++) vendor.push_back(char(word >> (8 * byte)));
      }
    }
    if (__get_cpuid(1, &a, &b, &c, &d)) {
      family = (a >> 8) & 0xf;
      model = (a >> 4) & 0xf;
      if (family == 0xf) family += (a >> 20) & 0xff;
      if (family >= 6) model |= ((a >> 16) & 0xf) << 4;
    }
    char numbers[64];
    std::snprintf(numbers, sizeof numbers, " family %u model %u ", family, model);
    text = vendor + numbers + at::get_cpu_capability();
#elif defined(__aarch64__)
    text = "aarch64 " + at::get_cpu_capability();
#else
    text = at::get_cpu_capability();
#endif
    return text.c_str();
  });
}

// The most bytes that libtorch has held on a GPU at a time, since the process began: 0 or -1.
int gan_peak_memory(int cuda, uint64_t* bytes) {
  return guarded(-1, [&] {
    TORCH_CHECK(cuda >= 0 && cuda <= 127, "there is no GPU ", cuda);
    auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(c10::DeviceIndex(cuda));
    auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = static_cast<uint64_t>(stats.reserved_bytes[all].peak);
    return 0;
  });
}

}  // extern "C"
