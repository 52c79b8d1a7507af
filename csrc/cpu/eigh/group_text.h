// The text of GroupSolver, under the rules of simd_text.h.

#pragma once

#include "small_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace group {

template <class T>
constexpr int kParts = kLanes<T> < 16 ? 2 : 1;  // vectors of matrices
template <class T>
constexpr int kMembers = kParts<T> * kLanes<T>;

constexpr int kDepth = EIGENDAMAGE_VECTOR_BYTES == 64 ? 4 : 2;  // sweeps whose rotations are applied in one pass
constexpr int kRecorded = 16 / kDepth;  // times kDepth sweeps are recorded before their rotations are applied
static_assert(kDepth <= kSpareGroupRows);

constexpr std::int64_t kTurns = 2 * kDepth;  // numbers in a step of one lane

// Numbers of the steps of one lane, in whole vectors.
template <class T>
constexpr std::int64_t lane_size(std::int64_t n) {
  return round_up(lanes::steps_of(n, kDepth) * kTurns, kLanes<T>);
}

template <class T>
std::int64_t workspace_size(std::int64_t n) {
  const std::int64_t reduction = reduction_workspace<T>(n);
  const std::int64_t recorded = (kRecorded + 1) * kMembers<T> * (lane_size<T>(n) + 16);
  return reduction > recorded ? reduction : recorded;
}

// Copies the steps of some sweeps to the lanes' own arrays, `size` apart.
template <class T, int Parts>
void part_lanes(const lanes::Sweeps<T, Parts, kDepth>& sweeps, std::int64_t size, T* turns) {
  const auto* const steps = sweeps.steps - (kDepth - 1);
  const std::int64_t begin = sweeps.low * kTurns / kLanes<T> * kLanes<T>,
                     end = round_up((sweeps.high + kDepth - 1) * kTurns, kLanes<T>);
  for (int part = 0; part < Parts; ++part) {
    for (std::int64_t first = begin; first < end; first += kLanes<T>) {
      Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = steps[(first + i) / kTurns].turn[part][(first + i) % kTurns];
      transpose<T>(square);
      store_square(kLanes<T>, square, turns + part * kLanes<T> * size + first, size);
    }
  }
}

template <class T, int Parts>
std::uint32_t diagonalise_parts(std::int64_t n, const std::int64_t* sizes, T* diagonal, T* beside, T* const* vectors_t,
                                T* workspace) {
  constexpr int most_sweeps = 30 * static_cast<int>(kMaxGroupSize<T>), members = Parts * kLanes<T>;
  const std::int64_t size = lane_size<T>(n);
  T* const turns = workspace;  // of each of some sweeps, of each member
  auto* const steps = reinterpret_cast<lanes::Step<T, Parts, kDepth>*>(turns + kRecorded * members * size);
  lanes::Chase<T, Parts, kDepth> chase(n, reinterpret_cast<Vector<T>*>(diagonal), reinterpret_cast<Vector<T>*>(beside));
  lanes::Sweeps<T, Parts, kDepth> sweeps[kRecorded];
  for (int done = 0; done < most_sweeps; done += kRecorded * kDepth) {
    int count = 0;
    for (; count < kRecorded; ++count) {
      sweeps[count].steps = steps + kDepth - 1;
      if (!chase.next(sweeps[count])) break;
      part_lanes(sweeps[count], size, turns + count * members * size);
    }
    for (int m = 0; m < members; ++m) {
      if (sizes[m] == 0) continue;
      const std::int64_t step = group_stride(sizes[m]) / kLanes<T>;
      auto* const rows = reinterpret_cast<Vector<T>*>(vectors_t[m]);
      lanes::for_panels<lanes::kColumns<kDepth>>(vectors_of<T>(sizes[m]), [&]<int Columns>(std::int64_t first) {
        for (int i = 0; i < count; ++i) {
          const std::int64_t low = sweeps[i].first[m / kLanes<T>][m % kLanes<T>];
          const std::int64_t high = sweeps[i].last[m / kLanes<T>][m % kLanes<T>];
          const T* const some = turns + (i * members + m) * size + (kDepth - 1) * kTurns;
          const auto turn = [some](std::int64_t row, int k) { return spread(some[row * kTurns + k]); };
          if (low < high) lanes::rotate<T, kDepth, Columns>(low, high, turn, rows + first, step);
        }
      });
    }
    if (count < kRecorded) return 0;
  }
  lanes::Block<T, Parts> block;
  chase.find(block);
  std::uint32_t stuck = 0;
  for (int m = 0; m < members; ++m) {
    if (block.open[m / kLanes<T>][m % kLanes<T>]) stuck |= std::uint32_t{1} << m;
  }
  return stuck;
}

template <class T>
std::uint32_t diagonalise(std::int64_t members, std::int64_t n, const std::int64_t* sizes, T* diagonal, T* beside,
                          T* const* vectors_t, T* workspace) {
  const bool few = members <= kLanes<T>;
  return (few ? diagonalise_parts<T, 1> : diagonalise_parts<T, kParts<T>>)(n, sizes, diagonal, beside, vectors_t,
                                                                           workspace);
}

template <class T>
constexpr GroupSolver<T> kGroupSolver{
    .lanes = kLanes<T>,
    .members = kMembers<T>,
    .workspace = workspace_size<T>,
    .reduce = reduce<T>,
    .diagonalise = diagonalise<T>,
};

}  // namespace group
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
