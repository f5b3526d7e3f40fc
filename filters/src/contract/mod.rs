//! What a filter is and what it may see.
