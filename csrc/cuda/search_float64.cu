// The search launchers for float64 rows.
#define SIAM_ROWS double
#include "cuda/search_typed.inl"
