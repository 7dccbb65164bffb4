// The search launchers for float32 rows.
#define SIAM_ROWS float
#include "cuda/search_typed.inl"
