// The search launchers for packed binary rows.
#define SIAM_ROWS math::Bits
#include "cuda/search_typed.inl"
