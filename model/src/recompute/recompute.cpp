// An autograd function that keeps a block's inputs instead of its inner activations and runs the
// block again for the backward pass. tch has no custom autograd functions; this is the whole of
// what is missing, with a C face. Nothing throws across it: a failing block is an error of the
// call, a failing backward is libtorch's error of that backward.
//
// The block's trained parameters are inputs of the function, so that their gradients come out of
// the ordinary backward pass: whoever hooks on them (DistributedDataParallel's Reducer) sees what
// it would see without.
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Runs the block on `count` tensors; returns a tensor that the caller frees, or null when the block
// failed.
using Run = Tensor* (*)(void* block, Tensor** inputs, int count);
using Free = void (*)(void* block);

// The block, kept alive by the graph.
struct Block : torch::CustomClassHolder {
  Block(void* block, Run run, Free free) : block(block), run(run), free(free) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() override { free(block); }

  Tensor operator()(variable_list inputs) const {
    std::vector<Tensor*> pointers;
    for (auto& input : inputs) {
      pointers.push_back(&input);
    }
    Tensor* out = run(block, pointers.data(), static_cast<int>(pointers.size()));
    TORCH_CHECK(out != nullptr, "a block that was to be computed again failed; its own message stands above");
    Tensor result = *out;
    delete out;
    return result;
  }

  void* block;
  Run run;
  Free free;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // Only tensors and `TensorList`s become inputs of the graph's node; a vector would be passed over
  // in silence.
  static Tensor forward(AutogradContext* ctx, c10::intrusive_ptr<Block> block, at::TensorList inputs,
                        at::TensorList parameters) {
    variable_list saved = inputs.vec();
    Tensor out = (*block)(saved);
    ctx->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
    ctx->saved_data["block"] = c10::IValue::make_capsule(std::move(block));
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    ctx->save_for_backward(std::move(saved));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto count = static_cast<size_t>(ctx->saved_data["inputs"].toInt());
    const auto block = c10::static_intrusive_pointer_cast<Block>(ctx->saved_data["block"].toCapsule());
    variable_list inputs;
    variable_list wanted;
    std::vector<size_t> places;
    for (size_t i = 0; i < saved.size(); ++i) {
      Tensor tensor = saved[i];
      if (i < count) {
        tensor = saved[i].detach();
        tensor.set_requires_grad(saved[i].requires_grad());
        inputs.push_back(tensor);
      }
      if (tensor.requires_grad()) {
        wanted.push_back(tensor);
        places.push_back(i);
      }
    }
    Tensor out;
    {
      at::AutoGradMode grad(true);
      out = (*block)(inputs);
    }
    const auto found = torch::autograd::grad({out}, wanted, {gradients[0]}, false, false, true);
    // The first place is the block's own, which is no tensor.
    variable_list result(1 + saved.size());
    for (size_t i = 0; i < places.size(); ++i) {
      result[1 + places[i]] = found[i];
    }
    return result;
  }
};

thread_local std::string message;

variable_list list(Tensor** tensors, int count) {
  variable_list list;
  for (int i = 0; i < count; ++i) {
    list.push_back(*tensors[i]);
  }
  return list;
}

}  // namespace

extern "C" {

// Takes the block over, whatever happens. Null on failure: `retri_recompute_error` says why.
Tensor* retri_recompute(void* block, Run run, Free free, Tensor** inputs, int input_count, Tensor** parameters,
                        int parameter_count) {
  try {
    auto holder = c10::make_intrusive<Block>(block, run, free);
    const auto given = list(inputs, input_count);
    const auto trained = list(parameters, parameter_count);
    return new Tensor(Recompute::apply(std::move(holder), at::TensorList(given), at::TensorList(trained)));
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

const char* retri_recompute_error() { return message.c_str(); }
}
