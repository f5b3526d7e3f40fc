//! The built-in filters, one file each.
