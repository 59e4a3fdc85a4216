//! Which quantizer gets which attributes.
