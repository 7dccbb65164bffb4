// The row launchers for bfloat16.
#define SIAM_STORAGE math::BFloat16
#include "cuda/rows_typed.inl"
