//! The udp room.
