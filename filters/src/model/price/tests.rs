//! Known sums, and what must hold for every sum.
