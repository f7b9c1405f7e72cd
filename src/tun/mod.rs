//! The tun room.
