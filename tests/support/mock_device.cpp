// SPDX-License-Identifier: Apache-2.0
//
// An accelerator for PyTorch whose memory is the host's. It computes on the CPU, but its tensors
// are of another device, so what mixes devices fails here as it does on CUDA.
//
// All operators go through one boxed fallback: each tensor of the device is shown to the CPU's
// kernel as a CPU tensor of the same memory, and what comes back is taken to the device the same
// way. Nothing is copied, so views and in-place operators work as they are. Every storage of the
// device owns one storage of the host; the two never part but where a kernel resizes.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pthread.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <array>
#include <unordered_set>
#include <vector>

namespace {

using at::DimnameList;
using at::IValue;
using at::IntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::Storage;
using c10::StorageImpl;

constexpr auto kMock = c10::DeviceType::PrivateUse1;

Device the_device() {
  return Device(kMock, 0);
}

// ---------------------------------------------------------------------------------------------
// Memory

void delete_host(void* context) {
  delete static_cast<Storage*>(context);
}

at::DataPtr own(const Storage& host) {
  auto* data = const_cast<void*>(host.unsafeGetStorageImpl()->data());
  return {data, new Storage(host), &delete_host, the_device()};
}

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    return own(Storage(Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator(), true));
  }
  at::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Allocator allocator;
REGISTER_ALLOCATOR(kMock, &allocator);

bool same(const Storage& a, const Storage& b) {
  return a.unsafeGetStorageImpl() == b.unsafeGetStorageImpl();
}

Storage host_of(const Storage& mock) {
  auto* impl = mock.unsafeGetStorageImpl();
  auto& data = impl->data_ptr();
  if (data.get_deleter() == &delete_host) {
    return *static_cast<Storage*>(data.get_context());
  }
  // Memory that is not from the allocator, as at::from_blob has it.
  at::DataPtr borrowed(
      const_cast<void*>(impl->data()), new Storage(mock), &delete_host, Device(c10::kCPU));
  return Storage(
      Storage::use_byte_size_t(), impl->nbytes(), std::move(borrowed), nullptr, false);
}

// ---------------------------------------------------------------------------------------------
// Random numbers: a generator of the CPU under the device's name

struct Generator final : c10::GeneratorImpl {
  Generator() : GeneratorImpl(the_device(), DispatchKeySet(DispatchKey::PrivateUse1)) {
    host = at::detail::createCPUGenerator();
  }
  void set_current_seed(uint64_t seed) override {
    host.set_current_seed(seed);
  }
  void set_offset(uint64_t offset) override {
    host.set_offset(offset);
  }
  uint64_t get_offset() const override {
    return host.get_offset();
  }
  uint64_t current_seed() const override {
    return host.current_seed();
  }
  uint64_t seed() override {
    return host.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    auto* copy = new Generator();
    copy->host = host.clone();
    return copy;
  }

  at::Generator host;
};

const at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<Generator>();
  return generator;
}

// ---------------------------------------------------------------------------------------------
// What PyTorch asks an accelerator

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return kMock;
  }
  Device exchangeDevice(Device) const override {
    return the_device();
  }
  Device getDevice() const override {
    return the_device();
  }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override {
    return c10::Stream(c10::Stream::DEFAULT, the_device());
  }
  c10::Stream getDefaultStream(Device) const override {
    return c10::Stream(c10::Stream::DEFAULT, the_device());
  }
  c10::Stream getNewStream(Device, int) const override {
    return c10::Stream(c10::Stream::DEFAULT, the_device());
  }
  c10::Stream exchangeStream(c10::Stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, the_device());
  }
  DeviceIndex deviceCount() const noexcept override {
    return 1;
  }
  void record(void**, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }
  DeviceIndex deviceCount() const override {
    return 1;
  }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override {
    return 0;
  }
  DeviceIndex exchangeDevice(DeviceIndex) const override {
    return 0;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override {
    return 0;
  }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::make_generator<Generator>();
  }
  Device getDeviceFromPtr(void*) const override {
    return the_device();
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetCPUAllocator();
  }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto data = allocator.allocate(bytes);
    std::memcpy(data.get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(data));
    impl->set_nbytes(bytes);
  }
};

// CUDA cannot be used in a forked process either.
bool forked = false;

void forbid_in_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

// ---------------------------------------------------------------------------------------------
// The fallback

// The device's tensors in one call, as the CPU sees them.
class Session {
 public:
  Storage host(const Storage& mock) {
    for (auto& [known, seen] : storages_) {
      if (same(known, mock)) {
        return seen;
      }
    }
    auto host = host_of(mock);
    storages_.emplace_back(mock, host);
    return host;
  }

  Tensor host(const Tensor& mock) {
    if (!mock.defined() || mock.device().type() != kMock) {
      return mock;
    }
    for (auto& [known, seen] : tensors_) {
      if (known.is_same(mock)) {
        return seen;
      }
    }
    auto seen = copy(mock, host(mock.storage()), DispatchKey::CPU);
    tensors_.emplace_back(mock, seen);
    return seen;
  }

  // A tensor that a kernel of the CPU returned: an argument itself, a view of one, or a new one.
  Tensor mock(const Tensor& host) {
    if (!host.defined()) {
      return host;
    }
    for (auto& [known, seen] : tensors_) {
      if (seen.is_same(host)) {
        return known;
      }
    }
    return copy(host, mock(host.storage()), DispatchKey::PrivateUse1);
  }

  // Takes over what the kernel did to its arguments beside writing to their memory.
  void commit() {
    for (auto& [mock, host] : tensors_) {
      auto* impl = mock.unsafeGetTensorImpl();
      auto storage = this->mock(host.storage());
      if (!same(mock.storage(), storage)) {
        impl->set_storage_keep_dtype(storage);
      }
      if (mock.sizes() != host.sizes() || mock.strides() != host.strides() ||
          mock.storage_offset() != host.storage_offset()) {
        impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      }
    }
    for (auto& [mock, host] : storages_) {
      auto* impl = mock.unsafeGetStorageImpl();
      if (impl->data() != host.data() || impl->nbytes() != host.nbytes()) {
        impl->set_data_ptr_noswap(own(host));
        impl->set_nbytes(host.nbytes());
      }
    }
  }

 private:
  static Tensor copy(const Tensor& tensor, const Storage& storage, DispatchKey key) {
    auto result =
        at::detail::make_tensor<c10::TensorImpl>(Storage(storage), DispatchKeySet(key), tensor.dtype());
    auto* impl = result.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      impl->set_wrapped_number(true);
    }
    return result;
  }

  Storage mock(const Storage& host) {
    for (auto& [known, seen] : storages_) {
      if (same(seen, host)) {
        return known;
      }
    }
    Storage storage(
        Storage::use_byte_size_t(), host.nbytes(), own(host), &allocator, host.resizable());
    storages_.emplace_back(storage, host);
    return storage;
  }

  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::vector<std::pair<Storage, Storage>> storages_;
};

template <typename Function>
void each_tensor(const IValue& value, Function function) {
  if (value.isTensor()) {
    function(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorVector()) {
      function(tensor);
    }
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      if (tensor) {
        function(*tensor);
      }
    }
  }
}

// Operators that take indices from the CPU, on CUDA too.
bool takes_host_indices(const std::string& name) {
  static const std::unordered_set<std::string> names = {
      "aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_",
      "aten::_index_put_impl_", "aten::_index_put_impl", "aten::_unsafe_index_put"};
  return names.count(name) > 0;
}

void check_devices(const c10::FunctionSchema& schema, c10::ArrayRef<IValue> values) {
  bool on_mock = false;
  for (const auto& value : values) {
    each_tensor(value, [&](const Tensor& tensor) {
      on_mock |= tensor.defined() && tensor.device().type() == kMock;
    });
  }
  if (!on_mock) {
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& argument = schema.arguments()[i];
    if (argument.name() == "indices" && takes_host_indices(schema.name())) {
      continue;
    }
    auto* alias = argument.alias_info();
    bool written = alias != nullptr && alias->isWrite();
    each_tensor(values[i], [&](const Tensor& tensor) {
      if (!tensor.defined() || tensor.device().type() == kMock) {
        return;
      }
      TORCH_CHECK(
          tensor.dim() == 0 && !written,
          "Expected all tensors to be on the same device, but found at least two devices, ",
          the_device(), " and ", tensor.device(), "! (argument ", argument.name(), " of ",
          schema.name(), ")");
    });
  }
}

IValue to_host(Session& session, const IValue& value) {
  if (value.isTensor()) {
    return session.host(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<Tensor> result;
    for (const Tensor& tensor : value.toTensorVector()) {
      result.push_back(session.host(tensor));
    }
    return result;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> result;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      result.push_back(tensor ? std::make_optional(session.host(*tensor)) : std::nullopt);
    }
    return result;
  }
  if (value.isStorage() && value.toStorage().device_type() == kMock) {
    return session.host(value.toStorage());
  }
  if (value.isDevice() && value.toDevice().type() == kMock) {
    return Device(c10::kCPU);
  }
  if (value.isGenerator()) {
    auto generator = value.toGenerator();
    TORCH_CHECK(
        generator.device().type() == kMock, "Expected a 'mock' device type for generator but found '",
        generator.device().type(), "'");
    return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->host;
  }
  return value;
}

IValue to_mock(Session& session, const IValue& value) {
  if (value.isTensor()) {
    return session.mock(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<Tensor> result;
    for (const Tensor& tensor : value.toTensorVector()) {
      result.push_back(session.mock(tensor));
    }
    return result;
  }
  return value;
}

bool takes_generator(const c10::Argument& argument) {
  auto type = argument.type();
  if (auto optional = type->cast<c10::OptionalType>()) {
    type = optional->getElementType();
  }
  return type->kind() == c10::TypeKind::GeneratorType;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  TORCH_CHECK(!forked, "Cannot use the mock device in a forked subprocess");
  const auto& schema = op.schema();
  const auto inputs = schema.arguments().size();
  check_devices(schema, torch::jit::last(*stack, inputs));

  at::AutoDispatchBelowADInplaceOrView guard;
  Session session;
  const auto begin = stack->size() - inputs;
  for (size_t i = 0; i < inputs; ++i) {
    auto& value = (*stack)[begin + i];
    if (value.isNone() && takes_generator(schema.arguments()[i])) {
      value = default_generator();
    }
    value = to_host(session, value);
  }
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  const auto outputs = schema.returns().size();
  session.commit();
  for (size_t i = stack->size() - outputs; i < stack->size(); ++i) {
    (*stack)[i] = to_mock(session, (*stack)[i]);
  }
}

// ---------------------------------------------------------------------------------------------
// Operators that the CPU has no kernel for, or that PyTorch routes by device

Tensor copy_from(const Tensor& source, const Tensor& target, bool) {
  TORCH_CHECK(!forked, "Cannot use the mock device in a forked subprocess");
  at::AutoDispatchBelowADInplaceOrView guard;
  Session session;
  session.host(target).copy_(session.host(source));
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Session session;
  auto host = session.host(target);
  host.resize_(source.sizes()).copy_(session.host(source));
  session.commit();
  return target;
}

// Parameters keep their identity when a module moves, as between CPU and CUDA.
bool compatible(const Tensor& self, const Tensor& from) {
  auto dense = [](const Tensor& tensor) {
    return tensor.layout() == c10::kStrided &&
        (tensor.device().is_cpu() || tensor.device().type() == kMock);
  };
  return dense(self) && dense(from);
}

void check_same(const char* name, at::ArrayRef<Tensor> tensors) {
  for (const auto& tensor : tensors) {
    TORCH_CHECK(
        !tensor.defined() || tensor.device().type() == kMock,
        "Expected all tensors to be on the same device, but found at least two devices, ", the_device(),
        " and cpu! (", name, ")");
  }
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool transposed,
    IntArrayRef output_padding, int64_t groups) {
  check_same("convolution", {input, weight, bias.value_or(Tensor())});
  at::AutoDispatchBelowADInplaceOrView guard;
  Session session;
  return session.mock(at::convolution(
      session.host(input), session.host(weight), session.host(bias.value_or(Tensor())), stride,
      padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed,
    IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  check_same("convolution_backward", {grad, input, weight});
  at::AutoDispatchBelowADInplaceOrView guard;
  Session session;
  int64_t width = transposed ? weight.size(1) * groups : weight.size(0);
  auto [a, b, c] = at::convolution_backward(
      session.host(grad), session.host(input), session.host(weight), at::IntArrayRef(width), stride,
      padding, dilation, transposed, output_padding, groups, mask);
  return {session.mock(a), session.mock(b), session.mock(c)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_has_compatible_shallow_copy_type", &compatible);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  // PyTorch has kernels of its own for other devices, which refuse channels_last.
  for (const char* name : {"native_group_norm", "native_layer_norm"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

// As CUDA has it: what is cast to the lower precision, what stays in float32, what is promoted.
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_UNLESS_ASKED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_UNLESS_ASKED)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(PROMOTE)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  forbid_in_forks();
  m.def("default_generator", [] { return default_generator(); });
  m.def("in_fork", [] { return forked; });
}
