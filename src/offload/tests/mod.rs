//! What the tests of this room and of the engine compare with.

pub(crate) mod reference;
