// What the convolutions of this folder have in common: they are called from Rust, and the kernel is 4,
// the stride 2, the padding 1.
#pragma once

#include "guarded.h"

#include <ATen/ATen.h>

namespace gan {

constexpr int64_t KERNEL = 4;

// `Function`, a function of autograd, of images and a weight; `check` throws where the images are not
// for it.
template <typename Function, typename Check>
int convolve(const at::Tensor& images, const at::Tensor& weight, bool transposed, at::Tensor** out,
             const Check& check) {
  return guarded(-1, [&] {
    TORCH_CHECK(weight.dim() == 4 && weight.size(2) == KERNEL && weight.size(3) == KERNEL,
                "the kernel must be 4x4, found ", weight.sizes());
    check();
    *out = new at::Tensor(Function::apply(images, weight, transposed));
    return 0;
  });
}

}  // namespace gan
