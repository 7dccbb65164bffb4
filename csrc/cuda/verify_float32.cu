// The launchers of verification for float32 rows.
#define SIAM_ROWS float
#include "cuda/verify_typed.inl"
