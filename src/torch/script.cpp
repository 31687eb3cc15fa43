// TorchScript: a module that stands alone, of named tensors and a method's source.

#include "guarded.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <cstddef>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

using gan::guarded;

namespace {

// A tree of modules, as the dots in a state dict's names make it.
struct Folder {
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  std::vector<std::pair<std::string, at::Tensor>> buffers;
  std::vector<std::pair<std::string, Folder>> folders;  // in the order of the names

  Folder& folder(const std::string& name) {
    for (auto& [known, inner] : folders) {
      if (known == name) return inner;
    }
    folders.emplace_back(name, Folder{});
    return folders.back().second;
  }
};

torch::jit::Module module_of(const Folder& folder, const std::string& name) {
  torch::jit::Module module(name);
  // Python's eval() and train() set it; the source doesn't look at it.
  module.register_attribute("training", c10::BoolType::get(), c10::IValue(false));
  for (const auto& [tensor_name, tensor] : folder.parameters) {
    module.register_parameter(tensor_name, tensor, /*is_buffer=*/false);
  }
  for (const auto& [tensor_name, tensor] : folder.buffers) {
    module.register_buffer(tensor_name, tensor);
  }
  for (const auto& [inner_name, inner] : folder.folders) {
    // A class for each: their tensors differ. Names of classes must not be numbers.
    module.register_module(inner_name, module_of(inner, name + "_" + inner_name));
  }
  return module;
}

}  // namespace

extern "C" {

// A module with the tensors `names[i]` (buffers where `buffers[i]`) and the methods in `source`, in
// the form that torch.jit.load reads: an std::string, or null. The same arguments give the same bytes.
void* gan_script(const char* name, const char* source, const char* const* names,
                 at::Tensor* const* tensors, const int* buffers, size_t count) {
  return guarded<void*>(nullptr, [&]() -> void* {
    Folder root;
    for (size_t i = 0; i < count; i++) {
      Folder* place = &root;
      std::stringstream path(names[i]);
      std::string part, next;
      std::getline(path, part, '.');
      while (std::getline(path, next, '.')) {
        place = &place->folder(part);
        part = next;
      }
      auto tensor = tensors[i]->detach().contiguous().clone();
      (buffers[i] ? place->buffers : place->parameters).emplace_back(part, tensor);
    }
    auto module = module_of(root, name);
    module.define(source);
    std::ostringstream file;
    module.save(file);
    return new std::string(file.str());
  });
}

const char* gan_script_bytes(void* script) { return static_cast<std::string*>(script)->data(); }

size_t gan_script_length(void* script) { return static_cast<std::string*>(script)->size(); }

void gan_script_free(void* script) {
  guarded(0, [&] {
    delete static_cast<std::string*>(script);
    return 0;
  });
}

}  // extern "C"
