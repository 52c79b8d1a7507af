#include "on_device.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "accesses.h"
#include "cuda_runtime.h"

namespace cuda_on_cpu {

using namespace eigendamage;

namespace {

/// Where accesses are watched races are found in any order, elsewhere as results that two orders make differ.
std::vector<Schedule> schedules() {
  if (watching()) return {{Schedule::Order::kForward}, {Schedule::Order::kRandom, 1}};
  return {{Schedule::Order::kForward}, {Schedule::Order::kReverse}};
}

void require(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw Fault(std::string(call) + " failed: " + cudaGetErrorString(status));
}

struct Extent {
  std::int64_t count, stride;
};

/// From the first element to the last that these axes reach.
std::size_t bytes_reached(ScalarType type, std::initializer_list<Extent> axes) {
  std::int64_t elements = 1;
  for (const Extent& axis : axes) {
    if (axis.count == 0) return 0;
    elements += (axis.count - 1) * axis.stride;
  }
  return static_cast<std::size_t>(elements * bytes_of(type));
}

}  // namespace

DeviceRun::DeviceRun() {
  scratch_ = [this](std::int64_t bytes) {
    void* memory = nullptr;
    require(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "cudaMalloc");
    memory_.push_back(memory);
    return memory;
  };
  execution_.scratch = &scratch_;
}

DeviceRun::~DeviceRun() {
  for (void* const memory : memory_) static_cast<void>(cudaFree(memory));
}

void* DeviceRun::copy(const void* host, std::size_t bytes) {
  void* const memory = scratch_(static_cast<std::int64_t>(bytes));
  require(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  return memory;
}

const void* DeviceRun::input(const void* host, std::size_t bytes) { return copy(host, bytes); }

void* DeviceRun::output(void* host, std::size_t bytes) {
  outputs_.push_back({host, copy(host, bytes), bytes});
  return outputs_.back().copy;
}

ImageView DeviceRun::input(ImageView v) {
  v.data = input(v.data, bytes_reached(v.type, {{v.batch, v.batch_stride},
                                                {v.channels, v.channel_stride},
                                                {v.height, v.height_stride},
                                                {v.width, v.width_stride}}));
  return v;
}

FactorView DeviceRun::output(FactorView v) {
  v.data = output(v.data, bytes_reached(v.type, {{v.groups, v.group_stride}, {v.size, v.row_stride}, {v.size, 1}}));
  return v;
}

WeightView DeviceRun::output(WeightView v, const ConvGeometry& geometry) {
  v.data = output(v.data, bytes_reached(v.type, {{v.outputs, v.output_stride},
                                                 {v.inputs, v.input_stride},
                                                 {geometry.vertical.kernel, v.row_stride},
                                                 {geometry.horizontal.kernel, v.column_stride}}));
  return v;
}

std::vector<std::vector<std::byte>> DeviceRun::results() const {
  std::vector<std::vector<std::byte>> all;
  for (const Output& output : outputs_) {
    all.emplace_back(output.bytes);
    require(cudaMemcpy(all.back().data(), output.copy, output.bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }
  return all;
}

void DeviceRun::store(const std::vector<std::vector<std::byte>>& results) const {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    std::copy(results[i].begin(), results[i].end(), static_cast<std::byte*>(outputs_[i].host));
  }
}

void on_device(const std::function<void(DeviceRun&)>& launch) {
  std::vector<std::vector<std::byte>> first;
  const std::vector<Schedule> all = schedules();
  for (std::size_t i = 0; i < all.size(); ++i) {
    device().schedule = all[i];
    DeviceRun run;
    launch(run);
    require(cudaGetLastError(), "a call whose result was not looked at");
    const auto results = run.results();
    if (i == 0) first = results;
    if (results != first) throw Fault("the result depends on the order in which threads and blocks run");
    if (i + 1 == all.size()) run.store(results);
  }
}

}  // namespace cuda_on_cpu
