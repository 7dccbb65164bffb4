// The launchers of verification for float64 rows.
#define SIAM_ROWS double
#include "cuda/verify_typed.inl"
