//! The 64 bits by which a completion says what it is about.

/// What a completion is about. Its 64 bits of user data hold the kind above and the index below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Frame,
    Datagram,
    Wake,
    Send(usize),
    Write(usize),
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        let word = match self {
            Token::Frame => 0,
            Token::Datagram => 1 << 32,
            Token::Wake => 2 << 32,
            Token::Send(index) => 3 << 32 | index as u64,
            Token::Write(index) => 4 << 32 | index as u64,
        };
        debug_assert_eq!(Token::unpack(word), Some(self), "the index runs into the kind");
        word
    }

    pub(super) fn unpack(word: u64) -> Option<Token> {
        let index = (word & 0xffff_ffff) as usize;
        match word >> 32 {
            0 => Some(Token::Frame),
            1 => Some(Token::Datagram),
            2 => Some(Token::Wake),
            3 => Some(Token::Send(index)),
            4 => Some(Token::Write(index)),
            _ => None,
        }
    }
}
