// The tile launchers for bfloat16.
#define SIAM_STORAGE math::BFloat16
#include "cuda/tiles_typed.inl"
