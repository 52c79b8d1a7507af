#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

/// The kernels of kernels.h as obvious loops in double precision. A result is (groups, size, size), without alpha and beta.
namespace reference {

/// x[n, c, h, w], widened.
double element(const eigendamage::ImageView& x, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w);

std::vector<double> covariance(const eigendamage::ImageView& x, std::int64_t groups, bool bias);
std::vector<double> channel_covariance(const eigendamage::ImageView& x, const eigendamage::ConvGeometry& geometry,
                                       std::int64_t groups);
std::vector<double> patch_covariance(const eigendamage::ImageView& x, const eigendamage::ConvGeometry& geometry,
                                     std::int64_t groups, bool bias);

/// out (O, C/g, kh, kw), O the channels of g (N, O, Ho, Wo).
std::vector<double> gradient_second_moment(const eigendamage::ImageView& x, const eigendamage::ImageView& g,
                                           const eigendamage::ConvGeometry& geometry, std::int64_t groups);

/// The same patch covariance as one product of float matrices would give it: what plain code is accurate to.
std::vector<double> patch_covariance_in_float(const eigendamage::ImageView& x,
                                              const eigendamage::ConvGeometry& geometry);

}  // namespace reference
