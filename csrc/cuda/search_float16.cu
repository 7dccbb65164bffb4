// The search launchers for float16 rows.
#define SIAM_ROWS math::Half
#include "cuda/search_typed.inl"
