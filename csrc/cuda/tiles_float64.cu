// The tile launchers for float64.
#define SIAM_STORAGE double
#include "cuda/tiles_typed.inl"
