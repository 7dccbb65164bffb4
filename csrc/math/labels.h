// Reading one label or one floating-point value, whatever it is stored as, and a row's own ones.
#pragma once

#include "math/numerics.h"
#include "math/params.h"

namespace siamcuda {

// `Load` reads one element of a type: plain on a CPU, checked in the emulator.
template <class Load>
SIAM_HOST_DEVICE double read_label(LabelType type, const void* data, int64_t index, Load load) {
  switch (type) {
    case LabelType::kUInt8: return load(static_cast<const uint8_t*>(data) + index);
    case LabelType::kInt8: return load(static_cast<const int8_t*>(data) + index);
    case LabelType::kInt16: return load(static_cast<const int16_t*>(data) + index);
    case LabelType::kInt32: return load(static_cast<const int32_t*>(data) + index);
    case LabelType::kInt64: {
      // Rounding to double can't turn another integer into 0 or 1.
      return static_cast<double>(load(static_cast<const int64_t*>(data) + index));
    }
    case LabelType::kFloat16:
      return math::widen(load(static_cast<const math::Half*>(data) + index));
    case LabelType::kBFloat16:
      return math::widen(load(static_cast<const math::BFloat16*>(data) + index));
    case LabelType::kFloat32: return load(static_cast<const float*>(data) + index);
    case LabelType::kFloat64: return load(static_cast<const double*>(data) + index);
    case LabelType::kNone: break;
  }
  return 0.0;
}

template <class Load>
SIAM_HOST_DEVICE double read_value(DType type, const void* data, int64_t index, Load load) {
  switch (type) {
    case DType::kFloat16: return math::widen(load(static_cast<const math::Half*>(data) + index));
    case DType::kBFloat16:
      return math::widen(load(static_cast<const math::BFloat16*>(data) + index));
    case DType::kFloat32: return load(static_cast<const float*>(data) + index);
    case DType::kFloat64: return load(static_cast<const double*>(data) + index);
  }
  return 0.0;
}

// What the row's label means; genuine where the loss F has no labels.
template <class F, class Load>
SIAM_HOST_DEVICE Label row_label(const RowArgs& args, int64_t row, Load load) {
  if (!F::kHasTarget) return Label::kGenuine;
  const int64_t at = row_offset(args.shape, args.target.strides, row);
  return decode_label(read_label(args.label_type, args.target.data, at, load), args.similar_label);
}

// What the row's gradient is multiplied by.
template <class Load>
SIAM_HOST_DEVICE double row_upstream(const RowArgs& args, int64_t row, Load load) {
  if (args.upstream.data == nullptr) return args.upstream_scale;
  const int64_t at = row_offset(args.shape, args.upstream.strides, row);
  return args.upstream_scale * read_value(args.value_dtype, args.upstream.data, at, load);
}

template <class Store>
SIAM_HOST_DEVICE void write_value(DType type, void* data, int64_t index, double value,
                                  Store store) {
  switch (type) {
    case DType::kFloat16:
      store(math::narrow<math::Half>(value), static_cast<math::Half*>(data) + index);
      break;
    case DType::kBFloat16:
      store(math::narrow<math::BFloat16>(value), static_cast<math::BFloat16*>(data) + index);
      break;
    case DType::kFloat32:
      store(static_cast<float>(value), static_cast<float*>(data) + index);
      break;
    case DType::kFloat64: store(value, static_cast<double*>(data) + index); break;
  }
}

}  // namespace siamcuda
