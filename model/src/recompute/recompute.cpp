// An autograd function that saves a block's inputs instead of its inner activations and recomputes
// the block for the backward pass. tch has no custom autograd functions; this file provides the one
// that is needed, with a C interface. No exception crosses the interface: a failing block is an
// error of the call, a failing backward is libtorch's error of that backward.
//
// The block's trained parameters are inputs of the function, so that their gradients come from the
// ordinary backward pass: hooks on them (DistributedDataParallel's Reducer) fire as they would
// without checkpointing.
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
    TORCH_CHECK(out != nullptr,
                "recomputing a checkpointed block failed; its error is logged above");
    Tensor result = *out;
    delete out;
    return result;
  }

  void* block;
  Run run;
  Free free;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // Only tensors and `TensorList`s become inputs of the graph's node; a vector would be silently
  // ignored.
  static Tensor forward(AutogradContext* ctx, c10::intrusive_ptr<Block> block,
                        at::TensorList inputs, at::TensorList parameters) {
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
    const auto block =
        c10::static_intrusive_pointer_cast<Block>(ctx->saved_data["block"].toCapsule());
    variable_list inputs;
    variable_list requires_grad;
    std::vector<size_t> indices;
    for (size_t i = 0; i < saved.size(); ++i) {
      Tensor tensor = saved[i];
      if (i < count) {
        tensor = saved[i].detach();
        tensor.set_requires_grad(saved[i].requires_grad());
        inputs.push_back(tensor);
      }
      if (tensor.requires_grad()) {
        requires_grad.push_back(tensor);
        indices.push_back(i);
      }
    }
    Tensor out;
    {
      at::AutoGradMode grad(true);
      out = (*block)(inputs);
    }
    const auto grads =
        torch::autograd::grad({out}, requires_grad, {gradients[0]}, false, false, true);
    // The first gradient is that of the block argument, which is not a tensor.
    variable_list result(1 + saved.size());
    for (size_t i = 0; i < indices.size(); ++i) {
      result[1 + indices[i]] = grads[i];
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

// Always takes ownership of the block. Returns null on failure; see `retri_recompute_error`.
Tensor* retri_recompute(void* block, Run run, Free free, Tensor** inputs, int input_count,
                        Tensor** parameters, int parameter_count) {
  try {
    auto holder = c10::make_intrusive<Block>(block, run, free);
    const auto block_inputs = list(inputs, input_count);
    const auto trained = list(parameters, parameter_count);
    return new Tensor(Recompute::apply(std::move(holder), at::TensorList(block_inputs),
                                       at::TensorList(trained)));
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

const char* retri_recompute_error() { return message.c_str(); }
}
