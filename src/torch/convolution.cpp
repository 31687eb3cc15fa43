// A convolution for training on a processor whose weight's gradient is one matrix product.
//
// oneDNN's kernel for the gradient of a weight adds image by image into all of the weight. Where an
// image has few positions (4x4 in DCGAN's deepest stage, whose weight is the largest) it mostly
// moves the weight back and forth, at a third of the speed of its other kernels. Gathering the
// 4x4 patches of all images first makes the same sum one product over images and positions.

#include "convolution.h"

#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using gan::KERNEL;

// The pixels under the kernel at each of its positions: [n*(h/2)*(w/2), 16*c] from [n, c, h, w].
at::Tensor patches(const at::Tensor& images) {
  const int64_t n = images.size(0), c = images.size(1), h = images.size(2), w = images.size(3);
  at::Tensor padded = at::zeros({n, h + 2, w + 2, c}, images.options());
  padded.narrow(1, 1, h).narrow(2, 1, w).copy_(images.permute({0, 2, 3, 1}));
  const int64_t row = (w + 2) * c, image = (h + 2) * row;
  return padded
      .as_strided({n, h / 2, w / 2, KERNEL, KERNEL, c}, {image, 2 * row, 2 * c, row, c, 1})
      .reshape({n * (h / 2) * (w / 2), KERNEL * KERNEL * c});
}

// Channels of each position: [n*h*w, c] from [n, c, h, w].
at::Tensor positions(const at::Tensor& images) {
  return images.permute({0, 2, 3, 1}).reshape({-1, images.size(1)});
}

struct Convolution : torch::autograd::Function<Convolution> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            bool transposed) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["transposed"] = transposed;
    return at::convolution(x, weight, {}, {2, 2}, {1, 1}, {1, 1}, transposed, {0, 0}, 1);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &dy = gradients[0];
    const bool transposed = ctx->saved_data["transposed"].toBool();
    at::Tensor dx, dw;
    if (ctx->needs_input_grad(0)) {
      dx = std::get<0>(at::convolution_backward(dy, x, weight, {}, {2, 2}, {1, 1}, {1, 1},
                                                transposed, {0, 0}, 1, {true, false, false}));
    }
    if (ctx->needs_input_grad(1)) {
      // The weight is [small side's channels, large side's channels, 4, 4] either way.
      const at::Tensor &large = transposed ? dy : x, &small = transposed ? x : dy;
      dw = at::mm(positions(small).t(), patches(large))
               .view({weight.size(0), KERNEL, KERNEL, weight.size(1)})
               .permute({0, 3, 1, 2});
    }
    return {dx, dw, at::Tensor()};
  }
};

}  // namespace

extern "C" int gan_convolve_by_product(at::Tensor* images, at::Tensor* weight, int transposed,
                                       at::Tensor** out) {
  return gan::convolve<Convolution>(*images, *weight, transposed != 0, out, [&] {
    const bool even = images->dim() == 4 && images->size(2) % 2 == 0 && images->size(3) % 2 == 0;
    TORCH_CHECK(images->dim() == 4 && (transposed || even), "expected images of even sides, found ",
                images->sizes());
  });
}
