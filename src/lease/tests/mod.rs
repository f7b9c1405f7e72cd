//! The machine as a whole: by hand on a [`rig`], and as networks of machines in a simulation ([`sim`]).

mod cached;
mod feed;
mod own;
mod publish;
mod rig;
mod rivals;
mod seek;
pub(crate) mod sim;
