// Element access on the CPU: what a label or value reader of math/labels.h is given here.
#pragma once

namespace siamcuda::cpu {

struct PlainLoad {
  template <class T>
  T operator()(const T* p) const {
    return *p;
  }
};

struct PlainStore {
  template <class T>
  void operator()(T value, T* p) const {
    *p = value;
  }
};

}  // namespace siamcuda::cpu
