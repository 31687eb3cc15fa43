// CUDA graphs, as C functions: a plug-in, for this alone needs CUDA's headers and libtorch_cuda's
// symbols. It is compiled into a shared object that the binary carries, and loaded once
// libtorch_cuda is there, which resolves what is undefined here.
//
// Every function catches: -1 or null is a failure, and gan_graph_error says why.

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "guarded.h"

#include <cstdint>
#include <memory>

using gan::guarded;

namespace {

struct Graph {
  at::cuda::CUDAGraph graph;
  c10::cuda::MempoolId_t pool;
  c10::DeviceIndex device;
};

Graph* graph_of(void* graph) { return static_cast<Graph*>(graph); }

// After a failure in between: what was to be recorded, the allocator takes for recorded no more.
void forget(const Graph& graph) {
  guarded(0, [&] {
    c10::cuda::CUDACachingAllocator::endAllocateToPool(graph.device, graph.pool);
    c10::cuda::CUDACachingAllocator::releasePool(graph.device, graph.pool);
    return 0;
  });
}

}  // namespace

extern "C" {

// Changes when the functions do.
int gan_graph_version() { return 1; }

const char* gan_graph_error() { return gan::last_error.c_str(); }

// A pool for the memory of graphs that are never under way at the same time.
int gan_graph_pool(uint64_t* first, uint64_t* second) {
  return guarded(-1, [&] {
    c10::cuda::MempoolId_t pool = at::cuda::graph_pool_handle();
    *first = pool.first;
    *second = pool.second;
    return 0;
  });
}

// What the current stream, which is none of the default ones, is given from now on is recorded and
// not done. Other threads may use CUDA meanwhile.
void* gan_graph_begin(uint64_t first, uint64_t second) {
  return guarded<void*>(nullptr, [&]() -> void* {
    auto graph = std::make_unique<Graph>();
    graph->pool = {first, second};
    graph->device = c10::cuda::current_device();
    try {
      graph->graph.capture_begin(graph->pool, cudaStreamCaptureModeThreadLocal);
    } catch (...) {
      forget(*graph);
      throw;
    }
    return graph.release();
  });
}

// Ends the recording on the same stream. After a failure the allocator records nothing any more
// either, and the graph can only be freed.
int gan_graph_end(void* graph) {
  return guarded(-1, [&] {
    Graph* recorded = graph_of(graph);
    try {
      recorded->graph.capture_end();
    } catch (...) {
      forget(*recorded);
      throw;
    }
    return 0;
  });
}

// Gives the current stream what was recorded.
int gan_graph_replay(void* graph) {
  return guarded(-1, [&] {
    graph_of(graph)->graph.replay();
    return 0;
  });
}

void gan_graph_free(void* graph) {
  guarded(0, [&] {
    delete graph_of(graph);
    return 0;
  });
}

}  // extern "C"
