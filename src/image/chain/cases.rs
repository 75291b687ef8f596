//! Chains by hand, one idea each.
