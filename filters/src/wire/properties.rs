//! Properties of the wire formats, checked on generated input.
