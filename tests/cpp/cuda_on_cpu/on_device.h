#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "kernels.h"

/// Runs CUDA kernels on the stand-in for a GPU:
///
///     on_device([&](DeviceRun& device) {
///       cuda_kernels()->covariance(device.input(x.view()), bias, update, device.output(out.view()), device.execution());
///     });
///
/// calls the function once under each of several schedules, every time on fresh copies of what it names as inputs and
/// outputs, requires that all runs give the same bits, and copies them back to where the outputs came from.
namespace cuda_on_cpu {

class DeviceRun {
 public:
  DeviceRun();
  ~DeviceRun();
  DeviceRun(const DeviceRun&) = delete;

  eigendamage::ImageView input(eigendamage::ImageView view);
  eigendamage::FactorView output(eigendamage::FactorView view);
  eigendamage::WeightView output(eigendamage::WeightView view, const eigendamage::ConvGeometry& geometry);
  /// Device copies of exactly so many bytes at `host`.
  const void* input(const void* host, std::size_t bytes);
  void* output(void* host, std::size_t bytes);

  /// Scratch memory is exactly as long as asked for, full of NaN, and freed with this.
  const eigendamage::Execution& execution() const { return execution_; }
  eigendamage::Execution& execution() { return execution_; }

  std::vector<std::vector<std::byte>> results() const;
  void store(const std::vector<std::vector<std::byte>>& results) const;

 private:
  struct Output {
    void* host;
    void* copy;
    std::size_t bytes;
  };
  void* copy(const void* host, std::size_t bytes);

  std::vector<void*> memory_;
  std::vector<Output> outputs_;
  eigendamage::Scratch scratch_;
  eigendamage::Execution execution_;
};

/// Throws a Fault for what goes wrong, bits that depend on the schedule included.
void on_device(const std::function<void(DeviceRun&)>& launch);

}  // namespace cuda_on_cpu
