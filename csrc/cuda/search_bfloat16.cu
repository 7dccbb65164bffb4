// The search launchers for bfloat16 rows.
#define SIAM_ROWS math::BFloat16
#include "cuda/search_typed.inl"
