//! The netlink room.
