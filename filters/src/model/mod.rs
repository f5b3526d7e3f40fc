//! Plain data that every floor speaks of.
