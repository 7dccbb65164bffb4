// The tile launchers for float32.
#define SIAM_STORAGE float
#include "cuda/tiles_typed.inl"
