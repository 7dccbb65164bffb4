// The tile launchers for float16.
#define SIAM_STORAGE math::Half
#include "cuda/tiles_typed.inl"
