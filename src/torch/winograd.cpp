// DCGAN's convolutions, forward and backward, by Winograd's minimal filtering.
//
// A convolution with kernel 4, stride 2 and padding 1 is one with kernel 2 and stride 1 once each 2x2
// square of pixels is taken for one pixel of four times the channels. Two neighbouring outputs of such
// a kernel along a line, of pixels d and taps g, take three products instead of four (Winograd 1980;
// Lavin and Gray 2015, arXiv 1509.09308):
//
//   y0 = d0 g0 + d1 g1 = (d0 - d1) g0 + d1 (g0 + g1)
//   y1 = d1 g0 + d2 g1 = d1 (g0 + g1) - (d1 - d2) g1
//
// So a square of 2x2 outputs takes nine products instead of sixteen, and as there are many channels,
// each of the nine is a product of matrices: tiles x channels. Forward and backward are the same three
// maps - of pixels, of outputs and of weights - or their transposes:
//
//   V = pixels(large)     U = taps(weight)     N = outputs'(small)       nine matrices each
//   down:   small  = outputs(V U')             a convolution; the way back of a transposed one
//   up:     large  = pixels'(N U)              a transposed convolution; the way back of a convolution
//   weigh:  weight = taps'(N' V)               the gradient of the weight, of both
//
// The maps only add and subtract, so that rounding is that of one or two additions more.

#include "convolution.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <vector>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using gan::KERNEL;
// Products along a line, and in a tile.
constexpr int64_t LINE = 3, TILE = LINE * LINE;
// Outputs of a tile along a line.
constexpr int64_t OUT = 2;
// Pixels that are taken for one along a line.
constexpr int64_t SQUARE = 2, PHASES = SQUARE * SQUARE;
// Between one of nine matrices and the next: without it, what is written at the same place in each
// would fall on the same lines of the processor's cache.
constexpr int64_t GAP = 80;
// Tiles that are worked on at a time, about: their matrices stay in the processor's cache.
constexpr int64_t TILES = 256;

// The maps go through their channels by themselves; the processor's widest registers are for that.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_PROCESSOR
#endif

using Nine = std::array<const float*, TILE>;
using NineOut = std::array<float*, TILE>;

// pixels: a tile's pixels to the left factors.
EACH_PROCESSOR void map_pixels(const Nine& d, const NineOut& v, int64_t channels) {
  const float *d0 = d[0], *d1 = d[1], *d2 = d[2], *d3 = d[3], *d4 = d[4], *d5 = d[5], *d6 = d[6],
              *d7 = d[7], *d8 = d[8];
  float *__restrict v0 = v[0], *__restrict v1 = v[1], *__restrict v2 = v[2], *__restrict v3 = v[3],
        *__restrict v4 = v[4], *__restrict v5 = v[5], *__restrict v6 = v[6], *__restrict v7 = v[7],
        *__restrict v8 = v[8];
  for (int64_t c = 0; c < channels; c++) {
    const float a0 = d0[c] - d3[c], a1 = d1[c] - d4[c], a2 = d2[c] - d5[c];
    const float b0 = d3[c], b1 = d4[c], b2 = d5[c];
    const float e0 = d3[c] - d6[c], e1 = d4[c] - d7[c], e2 = d5[c] - d8[c];
    v0[c] = a0 - a1, v1[c] = a1, v2[c] = a1 - a2;
    v3[c] = b0 - b1, v4[c] = b1, v5[c] = b1 - b2;
    v6[c] = e0 - e1, v7[c] = e1, v8[c] = e1 - e2;
  }
}

// Its transpose, added to what is there.
EACH_PROCESSOR void add_pixels(const Nine& v, const NineOut& d, int64_t channels) {
  const float *v0 = v[0], *v1 = v[1], *v2 = v[2], *v3 = v[3], *v4 = v[4], *v5 = v[5], *v6 = v[6],
              *v7 = v[7], *v8 = v[8];
  float *__restrict d0 = d[0], *__restrict d1 = d[1], *__restrict d2 = d[2], *__restrict d3 = d[3],
        *__restrict d4 = d[4], *__restrict d5 = d[5], *__restrict d6 = d[6], *__restrict d7 = d[7],
        *__restrict d8 = d[8];
  for (int64_t c = 0; c < channels; c++) {
    const float m0 = (v3[c] - v0[c]) + v6[c], m1 = (v4[c] - v1[c]) + v7[c], m2 = (v5[c] - v2[c]) + v8[c];
    d0[c] += v0[c], d1[c] += (v1[c] - v0[c]) + v2[c], d2[c] -= v2[c];
    d3[c] += m0, d4[c] += (m1 - m0) + m2, d5[c] -= m2;
    d6[c] -= v6[c], d7[c] -= (v7[c] - v6[c]) + v8[c], d8[c] += v8[c];
  }
}

// outputs: a tile's products to its outputs.
EACH_PROCESSOR void map_outputs(const Nine& m, const std::array<float*, OUT * OUT>& y, int64_t channels) {
  const float *m0 = m[0], *m1 = m[1], *m2 = m[2], *m3 = m[3], *m4 = m[4], *m5 = m[5], *m6 = m[6],
              *m7 = m[7], *m8 = m[8];
  float *__restrict y0 = y[0], *__restrict y1 = y[1], *__restrict y2 = y[2], *__restrict y3 = y[3];
  for (int64_t c = 0; c < channels; c++) {
    const float a0 = m0[c] + m3[c], a1 = m1[c] + m4[c], a2 = m2[c] + m5[c];
    const float b0 = m3[c] - m6[c], b1 = m4[c] - m7[c], b2 = m5[c] - m8[c];
    y0[c] = a0 + a1, y1[c] = a1 - a2;
    y2[c] = b0 + b1, y3[c] = b1 - b2;
  }
}

// Its transpose.
EACH_PROCESSOR void map_outputs_back(const std::array<const float*, OUT * OUT>& y, const NineOut& n,
                                     int64_t channels) {
  const float *y0 = y[0], *y1 = y[1], *y2 = y[2], *y3 = y[3];
  float *__restrict n0 = n[0], *__restrict n1 = n[1], *__restrict n2 = n[2], *__restrict n3 = n[3],
        *__restrict n4 = n[4], *__restrict n5 = n[5], *__restrict n6 = n[6], *__restrict n7 = n[7],
        *__restrict n8 = n[8];
  for (int64_t c = 0; c < channels; c++) {
    const float a0 = y0[c] + y2[c], a1 = y1[c] + y3[c];
    n0[c] = y0[c], n1[c] = y0[c] + y1[c], n2[c] = -y1[c];
    n3[c] = a0, n4[c] = a0 + a1, n5[c] = -a1;
    n6[c] = -y2[c], n7[c] = -y2[c] - y3[c], n8[c] = y3[c];
  }
}

// taps: a 2x2 kernel to the right factors.
EACH_PROCESSOR void map_taps(const std::array<const float*, PHASES>& g, const NineOut& u, int64_t channels) {
  const float *g0 = g[0], *g1 = g[1], *g2 = g[2], *g3 = g[3];
  float *__restrict u0 = u[0], *__restrict u1 = u[1], *__restrict u2 = u[2], *__restrict u3 = u[3],
        *__restrict u4 = u[4], *__restrict u5 = u[5], *__restrict u6 = u[6], *__restrict u7 = u[7],
        *__restrict u8 = u[8];
  for (int64_t c = 0; c < channels; c++) {
    const float a0 = g0[c] + g2[c], a1 = g1[c] + g3[c];
    u0[c] = g0[c], u1[c] = g0[c] + g1[c], u2[c] = g1[c];
    u3[c] = a0, u4[c] = a0 + a1, u5[c] = a1;
    u6[c] = g2[c], u7[c] = g2[c] + g3[c], u8[c] = g3[c];
  }
}

// Its transpose.
EACH_PROCESSOR void map_taps_back(const Nine& u, const std::array<float*, PHASES>& g, int64_t channels) {
  const float *u0 = u[0], *u1 = u[1], *u2 = u[2], *u3 = u[3], *u4 = u[4], *u5 = u[5], *u6 = u[6],
              *u7 = u[7], *u8 = u[8];
  float *__restrict g0 = g[0], *__restrict g1 = g[1], *__restrict g2 = g[2], *__restrict g3 = g[3];
  for (int64_t c = 0; c < channels; c++) {
    const float a0 = u0[c] + u3[c], a1 = u1[c] + u4[c], a2 = u2[c] + u5[c];
    const float b0 = u3[c] + u6[c], b1 = u4[c] + u7[c], b2 = u5[c] + u8[c];
    g0[c] = a0 + a1, g1[c] = a1 + a2;
    g2[c] = b0 + b1, g3[c] = b1 + b2;
  }
}

// [n, c, h, w] as [n, h, w, c] in a row.
at::Tensor rows(const at::Tensor& images) { return images.permute({0, 2, 3, 1}).contiguous(); }

at::Tensor images(const at::Tensor& rows) { return rows.permute({0, 3, 1, 2}); }

// What the three maps work on.
struct Shape {
  int64_t n, high, wide;    // of the small images
  int64_t small, large;     // channels

  int64_t tiles_high() const { return high / OUT; }
  int64_t tiles_wide() const { return wide / OUT; }
  int64_t tiles() const { return tiles_high() * tiles_wide(); }
  static Shape of(const at::Tensor& small, const at::Tensor& weight) {
    return {small.size(0), small.size(2), small.size(3), weight.size(0), weight.size(1)};
  }
  // Of small images that are not there yet.
  static Shape below(const at::Tensor& large, const at::Tensor& weight) {
    return {large.size(0), large.size(2) / SQUARE, large.size(3) / SQUARE, weight.size(0), weight.size(1)};
  }
  // Images that are worked on at a time.
  int64_t block() const { return std::clamp<int64_t>(TILES / tiles(), 1, n); }
};

// One of nine matrices in a row, whose columns' number is `width`; the pointers to a tile's row in
// each.
template <typename Pointer>
std::array<Pointer, TILE> rows_of(Pointer matrices, int64_t height, int64_t width, int64_t row) {
  std::array<Pointer, TILE> pointers;
  const int64_t apart = height * width + GAP;
  for (int64_t k = 0; k < TILE; k++) pointers[k] = matrices + k * apart + row * width;
  return pointers;
}

// Room for nine matrices.
at::Tensor nine(int64_t height, int64_t width, const at::TensorOptions& options) {
  const int64_t apart = height * width + GAP;
  return at::empty({TILE * apart}, options).as_strided({TILE, height, width}, {apart, width, 1});
}

template <typename Pointer>
void shift(std::array<Pointer, TILE>& pointers, int64_t by) {
  for (auto& pointer : pointers) pointer += by;
}

// Calls `body` with each tile of images first .. first + count: its image, its place and its row.
template <typename Body>
void each_tile(const Shape& shape, int64_t count, const Body& body) {
  const int64_t tiles = shape.tiles(), wide = shape.tiles_wide();
  // An image's tiles overlap in the way back: one thread has them all.
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; image++)
      for (int64_t tile = 0; tile < tiles; tile++)
        body(image, tile / wide, tile % wide, image * tiles + tile);
  });
}

// The pixels of a tile that are its 2x2 squares' member `phase`. Those beyond the image's edge are
// `beyond`.
template <typename Pointer>
std::array<Pointer, TILE> pixels_of(const Shape& shape, Pointer image, int64_t row, int64_t column,
                                    int64_t phase, Pointer beyond) {
  const int64_t high = SQUARE * shape.high, wide = SQUARE * shape.wide;
  std::array<Pointer, TILE> pointers;
  for (int64_t i = 0; i < LINE; i++) {
    const int64_t y = SQUARE * (OUT * row + i) - 1 + phase / SQUARE;
    for (int64_t j = 0; j < LINE; j++) {
      const int64_t x = SQUARE * (OUT * column + j) - 1 + phase % SQUARE;
      const bool within = y >= 0 && y < high && x >= 0 && x < wide;
      pointers[i * LINE + j] = within ? image + (y * wide + x) * shape.large : beyond;
    }
  }
  return pointers;
}

// The outputs of a tile.
template <typename Pointer>
std::array<Pointer, OUT * OUT> outputs_of(const Shape& shape, Pointer image, int64_t row, int64_t column) {
  Pointer first = image + (OUT * row * shape.wide + OUT * column) * shape.small;
  const int64_t line = shape.wide * shape.small;
  return {first, first + shape.small, first + line, first + line + shape.small};
}

// V of some images: [9, tiles, 4*large].
void pixels(const Shape& shape, const float* large, int64_t count, at::Tensor& matrices) {
  const int64_t width = PHASES * shape.large, height = matrices.size(1);
  const int64_t pixels = PHASES * shape.high * shape.wide * shape.large;
  const at::Tensor zeros = at::zeros({shape.large}, matrices.options());
  const float* beyond = zeros.const_data_ptr<float>();
  float* out = matrices.mutable_data_ptr<float>();
  each_tile(shape, count, [&](int64_t image, int64_t row, int64_t column, int64_t tile) {
    auto to = rows_of(out, height, width, tile);
    for (int64_t phase = 0; phase < PHASES; phase++) {
      map_pixels(pixels_of(shape, large + image * pixels, row, column, phase, beyond), to, shape.large);
      shift(to, shape.large);
    }
  });
}

// Their transpose.
void pixels_back(const Shape& shape, const at::Tensor& matrices, int64_t count, float* large) {
  const int64_t width = PHASES * shape.large, height = matrices.size(1);
  const int64_t pixels = PHASES * shape.high * shape.wide * shape.large;
  const float* in = matrices.const_data_ptr<float>();
  std::fill_n(large, count * pixels, 0.0f);
  each_tile(shape, count, [&](int64_t image, int64_t row, int64_t column, int64_t tile) {
    // Where pixels beyond the image's edge go, and nobody looks.
    static thread_local std::vector<float> beyond;
    if (static_cast<int64_t>(beyond.size()) < TILE * shape.large) beyond.resize(TILE * shape.large);
    auto from = rows_of(in, height, width, tile);
    for (int64_t phase = 0; phase < PHASES; phase++) {
      auto to = pixels_of(shape, large + image * pixels, row, column, phase, static_cast<float*>(nullptr));
      for (int64_t k = 0; k < TILE; k++)
        if (to[k] == nullptr) to[k] = beyond.data() + k * shape.large;
      add_pixels(from, to, shape.large);
      shift(from, shape.large);
    }
  });
}

// N of some images: [9, tiles, small].
void outputs_back(const Shape& shape, const float* small, int64_t count, at::Tensor& matrices) {
  const int64_t pixels = shape.high * shape.wide * shape.small, height = matrices.size(1);
  float* out = matrices.mutable_data_ptr<float>();
  each_tile(shape, count, [&](int64_t image, int64_t row, int64_t column, int64_t tile) {
    map_outputs_back(outputs_of(shape, small + image * pixels, row, column),
                     rows_of(out, height, shape.small, tile), shape.small);
  });
}

// Its transpose.
void outputs(const Shape& shape, const at::Tensor& matrices, int64_t count, float* small) {
  const int64_t pixels = shape.high * shape.wide * shape.small, height = matrices.size(1);
  const float* in = matrices.const_data_ptr<float>();
  each_tile(shape, count, [&](int64_t image, int64_t row, int64_t column, int64_t tile) {
    map_outputs(rows_of(in, height, shape.small, tile),
                outputs_of(shape, small + image * pixels, row, column), shape.small);
  });
}

// Calls `body` with each output channel of a weight in memory order [small, 4, 4, large], each member
// of a square, and the four taps that fall on it.
template <typename Pointer, typename Body>
void each_kernel(Pointer weight, int64_t small, int64_t large, const Body& body) {
  at::parallel_for(0, small, 16, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; channel++) {
      for (int64_t phase = 0; phase < PHASES; phase++) {
        std::array<Pointer, PHASES> taps;
        for (int64_t tap = 0; tap < PHASES; tap++) {
          const int64_t y = SQUARE * (tap / SQUARE) + phase / SQUARE;
          const int64_t x = SQUARE * (tap % SQUARE) + phase % SQUARE;
          taps[tap] = weight + ((channel * KERNEL + y) * KERNEL + x) * large;
        }
        body(channel, phase, taps);
      }
    }
  });
}

// U: [9, small, 4*large].
at::Tensor taps(const at::Tensor& weight) {
  const at::Tensor in_rows = rows(weight);
  const int64_t small = weight.size(0), large = weight.size(1), width = PHASES * large;
  at::Tensor matrices = nine(small, width, in_rows.options());
  float* out = matrices.mutable_data_ptr<float>();
  each_kernel(in_rows.const_data_ptr<float>(), small, large, [&](int64_t channel, int64_t phase, auto& taps) {
    auto to = rows_of(out, small, width, channel);
    shift(to, phase * large);
    map_taps(taps, to, large);
  });
  return matrices;
}

// Their transpose.
at::Tensor taps_back(const at::Tensor& matrices, int64_t large) {
  const int64_t small = matrices.size(1), width = PHASES * large;
  at::Tensor weight = at::empty({small, KERNEL, KERNEL, large}, matrices.options());
  const float* in = matrices.const_data_ptr<float>();
  each_kernel(weight.mutable_data_ptr<float>(), small, large, [&](int64_t channel, int64_t phase, auto& taps) {
    auto from = rows_of(in, small, width, channel);
    shift(from, phase * large);
    map_taps_back(from, taps, large);
  });
  return images(weight);
}

// Calls `body` with some images at a time: the first, their number, and their number of tiles.
template <typename Body>
void each_block(const Shape& shape, const Body& body) {
  for (int64_t first = 0; first < shape.n; first += shape.block()) {
    const int64_t count = std::min(shape.block(), shape.n - first);
    body(first, count, count * shape.tiles());
  }
}

at::Tensor down(const Shape& shape, const at::Tensor& large, const at::Tensor& u) {
  const at::Tensor in = rows(large);
  at::Tensor out = at::empty({shape.n, shape.high, shape.wide, shape.small}, in.options());
  each_block(shape, [&](int64_t first, int64_t count, int64_t tiles) {
    at::Tensor v = nine(tiles, PHASES * shape.large, in.options());
    at::Tensor m = nine(tiles, shape.small, in.options());
    pixels(shape, in[first].const_data_ptr<float>(), count, v);
    for (int64_t k = 0; k < TILE; k++) {
      at::Tensor product = m[k];
      at::mm_out(product, v[k], u[k].t());
    }
    outputs(shape, m, count, out[first].mutable_data_ptr<float>());
  });
  return images(out);
}

at::Tensor up(const Shape& shape, const at::Tensor& small, const at::Tensor& u) {
  const at::Tensor in = rows(small);
  at::Tensor out = at::empty({shape.n, SQUARE * shape.high, SQUARE * shape.wide, shape.large}, in.options());
  each_block(shape, [&](int64_t first, int64_t count, int64_t tiles) {
    at::Tensor n = nine(tiles, shape.small, in.options());
    at::Tensor v = nine(tiles, PHASES * shape.large, in.options());
    outputs_back(shape, in[first].const_data_ptr<float>(), count, n);
    for (int64_t k = 0; k < TILE; k++) {
      at::Tensor product = v[k];
      at::mm_out(product, n[k], u[k]);
    }
    pixels_back(shape, v, count, out[first].mutable_data_ptr<float>());
  });
  return images(out);
}

at::Tensor weigh(const Shape& shape, const at::Tensor& large, const at::Tensor& small) {
  const at::Tensor large_rows = rows(large), small_rows = rows(small);
  at::Tensor u = nine(shape.small, PHASES * shape.large, large_rows.options());
  each_block(shape, [&](int64_t first, int64_t count, int64_t tiles) {
    at::Tensor v = nine(tiles, PHASES * shape.large, large_rows.options());
    at::Tensor n = nine(tiles, shape.small, large_rows.options());
    pixels(shape, large_rows[first].const_data_ptr<float>(), count, v);
    outputs_back(shape, small_rows[first].const_data_ptr<float>(), count, n);
    for (int64_t k = 0; k < TILE; k++) {
      at::Tensor sum = u[k];
      if (first == 0) at::mm_out(sum, n[k].t(), v[k]);
      else sum.addmm_(n[k].t(), v[k]);
    }
  });
  return taps_back(u, shape.large);
}

struct Winograd : torch::autograd::Function<Winograd> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            bool transposed) {
    const at::Tensor u = taps(weight);
    ctx->save_for_backward({x, weight, u});
    ctx->saved_data["transposed"] = transposed;
    return transposed ? up(Shape::of(x, weight), x, u) : down(Shape::below(x, weight), x, u);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &u = saved[2], &dy = gradients[0];
    const bool transposed = ctx->saved_data["transposed"].toBool();
    const bool of_x = ctx->needs_input_grad(0), of_weight = ctx->needs_input_grad(1);
    if (at::GradMode::is_enabled()) {
      // Somebody wants the gradient's gradient, which libtorch's own convolution has.
      auto [dx, dw, none] = at::convolution_backward(dy, x, weight, {}, {2, 2}, {1, 1}, {1, 1}, transposed,
                                                     {0, 0}, 1, {of_x, of_weight, false});
      return {dx, dw, at::Tensor()};
    }
    const at::Tensor &large = transposed ? dy : x, &small = transposed ? x : dy;
    const Shape shape = Shape::of(small, weight);
    at::Tensor dx, dw;
    if (of_x) dx = transposed ? down(shape, dy, u) : up(shape, dy, u);
    if (of_weight) dw = weigh(shape, large, small);
    return {dx, dw, at::Tensor()};
  }
};

}  // namespace

extern "C" int gan_winograd(at::Tensor* images, at::Tensor* weight, int transposed, at::Tensor** out) {
  return gan::convolve<Winograd>(*images, *weight, transposed != 0, out, [&] {
    for (const at::Tensor* tensor : {images, weight})
      TORCH_CHECK(tensor->device().is_cpu() && tensor->scalar_type() == at::kFloat,
                  "images and weight must be f32 in host memory");
    const int64_t side = transposed ? OUT : SQUARE * OUT, channels = weight->size(transposed ? 0 : 1);
    const bool fit = images->dim() == 4 && images->size(0) > 0 && images->size(1) == channels &&
                     images->size(2) % side == 0 && images->size(3) % side == 0;
    TORCH_CHECK(fit, "expected images of ", channels, " channels whose sides are multiples of ", side,
                ", found ", images->sizes());
  });
}
